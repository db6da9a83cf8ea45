"""Write the table and the code of docs/tasks.md from the files beside this one: `python docs/tasks/page.py`."""

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "tasks.md"
LIBRARIES = {"mixvae": "with_mixvae.py", "pythae": "with_pythae.py", "PyTorch": "with_pytorch.py"}


def tasks(library: str) -> dict[str, str]:
    """Code of each task by its title, as formatted by ruff."""
    _, *parts = re.split(r"^# %% (.*)\n", (HERE / LIBRARIES[library]).read_text(), flags=re.MULTILINE)
    return {title: code.strip("\n") for title, code in zip(parts[::2], parts[1::2], strict=True)}


def imports(library: str) -> str:
    """What comes before the first task."""
    head = re.split(r"^# %% ", (HERE / LIBRARIES[library]).read_text(), flags=re.MULTILINE)[0]
    return re.sub(r'^""".*?"""\n', "", head, flags=re.DOTALL).strip()


def lines(code: str) -> int:
    """Lines of code, without blank lines and comments."""
    return sum(1 for line in code.splitlines() if line.strip() and not line.strip().startswith("#"))


def cell(code: str) -> str:
    """What the table says of some code: the number of its lines, in brackets where the library has no such thing."""
    return f"none ({lines(code)})" if code.startswith("# none") else str(lines(code))


def table() -> str:
    """One row per task, and the sum."""
    every = {library: tasks(library) for library in LIBRARIES}
    rows = ["| task | " + " | ".join(LIBRARIES) + " |", "|---|" + "--:|" * len(LIBRARIES)]
    for title in every["mixvae"]:
        rows.append(f"| {title} | " + " | ".join(cell(every[library][title]) for library in LIBRARIES) + " |")
    sums = (str(sum(lines(code) for code in every[library].values())) for library in LIBRARIES)
    return "\n".join([*rows, "| together | " + " | ".join(sums) + " |"])


def code() -> str:
    """The data, the imports and every task in each library."""
    given = (HERE / "given.py").read_text().split('"""\n', 1)[1].strip()
    parts = ["### What all start from", block(given), "### Imports", *(block(imports(name)) for name in LIBRARIES)]
    every = {library: tasks(library) for library in LIBRARIES}
    for number, title in enumerate(every["mixvae"], 1):
        parts.append(f"### {number}. {title}")
        parts += [f"{library}:\n\n{block(every[library][title])}" for library in LIBRARIES]
    return "\n\n".join(parts)


def block(code: str) -> str:
    """Code as Markdown shows it; not as one of the blocks that tests run from pages."""
    return f"```py\n{code}\n```"


def rendered(page: str) -> str:
    """The page with its table and code as they are now."""
    for name, content in (("table", table()), ("code", code())):
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        page = pattern.sub(lambda match, content=content: f"{match[1]}\n{content}\n\n{match[2]}", page)
    return page


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))
