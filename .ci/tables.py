"""Write the tables of a page from the data beside it, or check them.

    python .ci/tables.py docs/results.md
    python .ci/tables.py --check docs/results.md

What stands between `<!-- reproduce FOLDER -->` and `<!-- end -->` is the table of docs/data/FOLDER, with its contrasts
and verdicts, as the command in that folder's command.txt finds them in a copy, without training.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from published import asked, check

from mixvae._tables import Row
from mixvae.files import checksum
from mixvae.progress import Progress
from mixvae.reports import Column, filled
from mixvae.reproduce import Findings, Verdict, reproduce
from mixvae.reproduce.contrasts import CONTRASTS
from mixvae.reproduce.trainings import Trainings
from mixvae.sweeps import LOCAL
from mixvae.sweeps._tasks import Task

DATA = Path(__file__).resolve().parent.parent / "docs" / "data"
BLOCK = re.compile(r"(?<=<!-- reproduce )([\w/-]+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)
UNSHOWN = {
    "seeds", "kind", "gain_p", "gain_model", "nll_pooled", "nll_miselbo", "miselbo", "miselbo_gain", "parameters"
}  # fmt: skip
"""Columns that the text says, or another column, or the table of contrasts."""


def markdown(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """Rows as a table in Markdown."""
    heads = [column.title for column in columns]
    lines = [heads, ["---" if i == 0 else "--:" for i in range(len(heads))]]
    lines += [[column.text(row) for column in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def found_in(folder: Path) -> Findings:
    """What the experiment finds in a folder of published results."""
    given, plan = asked((folder / "command.txt").read_text())
    check(folder, plan)
    with TemporaryDirectory() as home:
        copy = shutil.copytree(folder, Path(home) / folder.name)
        found = reproduce(**given, out=copy, runner=Refusing() if isinstance(plan, Trainings) else LOCAL)
        if new := dict(made(copy).items() - made(folder).items()):
            raise SystemExit(f"{folder} lacks {', '.join(sorted(new))}: train it with the command, and publish again")
    return found


class Refusing:
    """A runner that trains nothing."""

    def run(self, tasks: Sequence[Task], progress: Progress) -> Generator[tuple[str, str], None, None]:
        """Refuse every cell."""
        del progress
        yield from ((task.name, "is not in the published folder: train it, and publish again") for task in tasks)


def made(folder: Path) -> dict[str, str]:
    """Checksum of every result in a folder, by its path."""
    each = [path for path in folder.rglob("*.json") if path != folder / "results.json"]
    return {str(path.relative_to(folder)): checksum(path.read_bytes()) for path in each}


def block(folder: str) -> str:
    """Tables and verdicts of an experiment."""
    found = found_in(DATA / folder)
    columns = [column for column in filled(found.columns, found.table) if column.value not in UNSHOWN]
    contrasts = f"{markdown(filled(CONTRASTS, found.contrasts), found.contrasts)}\n" if found.contrasts else ""
    return f"{markdown(columns, found.table)}\n{contrasts}{''.join(map(partial(verdict, found), found.verdicts))}"


def verdict(found: Findings, judged: Verdict) -> str:
    """A verdict, with its evidence unless that is in the table of contrasts."""
    tabled = any(str(row["contrast"]) in judged.evidence for row in found.contrasts)
    return f"- **{judged.word}** ({judged.kind}): {judged.claim}{'' if tabled else f' {judged.evidence}.'}\n"


def written(text: str) -> str:
    """A page with its tables made anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{match[2]}\n{block(match[1])}\n", text)


def main() -> None:
    """Write the pages, or tell which differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a table differs")
    given = parser.parse_args()
    old = {page: page.read_text() for page in given.pages}
    stale = {page: new for page, text in old.items() if (new := written(text)) != text}
    if given.check and stale:
        parser.exit(1, f"tables differ from docs/data: run python .ci/tables.py {' '.join(map(str, stale))}\n")
    for page, text in stale.items():
        page.write_text(text)


if __name__ == "__main__":
    main()
