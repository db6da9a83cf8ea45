"""A table of ratios at the end of a benchmark run."""


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    rows = [b for b in getattr(session, "benchmarks", []) if "ratio" in b.extra_info]
    if not rows:
        return
    terminalreporter.section("medians, pair by pair")
    terminalreporter.write_line(f"{'case':<34}{'baseline ms':>12}{'ours ms':>10}{'ratio':>8}{'of peak sgemm':>15}")
    for b in rows:
        info = b.extra_info
        share = f"{info['share_of_peak']:.0%}" if "share_of_peak" in info else ""
        terminalreporter.write_line(
            f"{b.name:<34}{info['baseline_ms']:>12.1f}{info['ours_ms']:>10.1f}{info['ratio']:>8.2f}{share:>15}"
        )
