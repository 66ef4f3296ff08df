"""The report: what does a run say while it works and when it is done?"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import (
    NO_ISAL,
    Folders,
    command,
    environment,
    load_set,
    names,
    pickled_call,
    pickled_list,
    split,
    split_on_terminal,
    split_without,
    sub_names,
    write_batch,
    write_module,
)

import divide_conquer

SIZE = r"(?:[1-9]\d{0,2}|\d\.\d{1,2}|\d\d\.\d) [kMGT]?B"  # decimal, a point, a space


def lines_of(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def summary(report: str) -> list[str]:
    """Return the last lines of a report, from the summary on."""
    return report[report.index("Resumen: ") :].splitlines()


def screen(shown: str, columns: int) -> list[str]:
    """Return what a terminal of this width has on it in the end: it wraps, CR returns, LF feeds."""
    lines, row, column = [""], 0, 0
    for character in shown:
        if character == "\r":
            column = 0
        elif character == "\n":
            lines.append("")
            row, column = row + 1, 0
        else:
            if column == columns:  # only now does a terminal go to the next line
                lines.append("")
                row, column = row + 1, 0
            lines[row] = lines[row][:column].ljust(column) + character + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


def bars(shown: str) -> Iterator[str]:
    """Yield every state of a bar that was shown."""
    for piece in re.split(r"[\r\n]", shown):
        if "|" in piece:
            yield piece.rstrip()


CONTROL_CHARACTERS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\x80-\x9f]")


# While it runs


def test_a_log_says_which_file_was_begun(tmp_path: Path) -> None:
    """The file kills the process while it is loaded: its line is there, though no report is."""
    write_batch(tmp_path / "in" / "a.pkl", [1])
    module = "import os, signal\ndef die():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    env = write_module(tmp_path / "modules", "dying", module)
    data = pickled_list(pickled_call("dying", "die"))
    (tmp_path / "in" / "b.pkl").write_bytes(data)
    done = split("-i", tmp_path / "in", "-o", tmp_path / "out", env=env)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.splitlines()[-1] == f"Dividiendo 2/2: b.pkl ({len(data)} B)"


def test_only_what_is_begun_is_announced(tmp_path: Path) -> None:
    write_batch(tmp_path / "in" / "a.pkl", [1])
    args = ("-i", tmp_path / "in", "-o", tmp_path / "out", "--skip-existing")
    assert lines_of(split(*args).stdout, "Dividiendo 1/1: a.pkl (")
    (tmp_path / "in" / "b.pkl").symlink_to("nowhere")
    write_batch(tmp_path / "in" / "c.pkl", [1])
    assert [line[:20] for line in lines_of(split(*args).stdout, "Dividiendo")] == [
        "Dividiendo 3/3: c.pk"
    ]
    (tmp_path / "in" / "b.pkl").unlink()
    verified = split(*args[:4], "--verify").stdout
    assert len(lines_of(verified, "Comparando")) == 2
    assert lines_of(verified, "Comparando 2/2: c.pkl (")
    assert split(*args[:4], "--verify", "--quiet").stdout == ""


@pytest.mark.parametrize("rows, columns", [(24, 60), (24, 80), (24, 100), (0, 0)], ids=str)
def test_a_bar_names_its_file_and_leaves_the_last_columns_free(
    tmp_path: Path, rows: int, columns: int
) -> None:
    name = "llama2_chat_7B_triviaqa_batch_0007.pkl.gz"
    write_batch(tmp_path / "in" / name, [os.urandom(200_000)] * 3)
    write_batch(tmp_path / "in" / "sh\x1brt.pkl", [1])
    done = split_on_terminal(
        *("-i", tmp_path / "in", "-o", tmp_path / "out"), rows=rows, columns=columns
    )
    assert done.returncode == 0
    assert "Dividiendo" not in done.stdout + done.terminal  # the bar says it
    shown = list(bars(done.terminal))
    for phase in ("Cargando", "Guardando", "Validando"):
        assert any(bar.startswith(f"1/2 {phase} …iaqa_batch_0007: ") for bar in shown)
        assert any(bar.startswith(f"2/2 {phase} sh\\x1brt: ") for bar in shown)
    assert max(map(len, shown)) <= (columns or 80) - 3
    numbers = rf"(?:{SIZE}|0 B)/{SIZE} \[00:0\d<(?:00:0\d|\?), .+B/s\]"
    if columns == 60:
        numbers = r"\[(?:00:0\d|\?)\]"
    whole = re.compile(rf":  +\d+%\|.{{2,}}\| {numbers}$")
    assert any(whole.search(bar) for bar in shown), shown
    assert set(screen(done.terminal, columns or 80)) == {""}
    assert not CONTROL_CHARACTERS.search(done.stdout)
    assert len(done.stdout.splitlines()) == 4  # of the files, of the summary, of the folder


@pytest.mark.parametrize("columns", [80, 120])
def test_ctrl_c_leaves_no_dead_bar(tmp_path: Path, columns: int) -> None:
    module = "import time\ndef nap():\n    time.sleep(1.5)\n"
    env = write_module(tmp_path / "modules", "napping", module)
    (tmp_path / "a.pkl").write_bytes(pickled_list(pickled_call("napping", "nap")))
    done = split_on_terminal(
        *("-i", tmp_path / "a.pkl", "-o", tmp_path / "out"),
        answer=b"\x03",
        prompt="Cargando",
        env=env,
        controlling=True,
        columns=columns,
    )
    assert done.returncode == 130
    assert "^C" in done.terminal
    left = screen(done.terminal, columns)
    assert "Interrumpido" in left[0]
    assert not any("^" in line or "|" in line for line in left)
    assert names(tmp_path / "out") == []


def test_a_bar_that_tqdm_was_told_to_hide_is_hidden(tmp_path: Path) -> None:
    source = write_batch(tmp_path / "a.pkl", [1])
    env = environment(TQDM_DISABLE="1")
    done = split_on_terminal("-i", source, "-o", tmp_path / "out", env=env)
    assert (done.returncode, done.terminal) == (0, "")


# When it is done


def test_report_has_a_line_per_file_and_a_summary(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", list(range(7)))
    write_batch(folders.source / "b.pkl", list(range(2)))
    done = split(*folders.args("-n", 3))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 7
    size = r"[0-9.]+ [kM]?B"
    seconds = r"[0-9.]+ s"
    assert [re.sub(r"\(.+\)", "()", line) for line in lines[:4:2]] == [
        "Dividiendo 1/2: a.pkl.gz ()",
        "Dividiendo 2/2: b.pkl ()",
    ]
    for line, start in zip(
        lines[1:4:2],
        (r"a\.pkl\.gz: 7 traces → 3 sub-batches", r"b\.pkl: 2 traces → 1 sub-batch"),
    ):
        assert re.fullmatch(
            rf"{start}, {size} → {size}; {seconds} "
            rf"\(carga {seconds}, guardado {seconds}, validación {seconds}\)"
            f"; memoria máxima hasta ahora {size}",
            line,
        )
    assert re.fullmatch(
        rf"Resumen: 2 divididos; 9 traces en 4 sub-batches, {size} → {size}; {seconds}\.",
        lines[4],
    )
    assert lines[5] == f"  Los sub-batches están en {folders.output}"
    assert lines[6].startswith("  Un cargador con 2 sub-batches en caché y otro cargándose ")


def test_no_validate_is_told_in_the_report(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    done = split(*folders.args("-n", 2, "--no-validate"))
    assert done.returncode == 0
    assert "sin validar" in done.stdout
    assert load_set(folders.output, "a") == [[1, 2], [3]]


def test_the_summary_says_where_and_how_long_and_names_failures_only(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out with spaces"
    write_batch(source / "a.pkl", {"no": "list"})
    write_batch(source / "b.pkl", [1])
    write_batch(source / "c.pkl", [1, 2])
    (source / "d.pkl").write_bytes(b"")
    done = split("-i", source, "-o", output)
    first, *more = summary(done.stdout)
    totals = rf"3 traces en 2 sub-batches, {SIZE} → {SIZE}"
    assert re.fullmatch(rf"Resumen: 2 divididos, 2 con error; {totals}; \d\.\d s\.", first)
    assert more == [
        f"  Los sub-batches están en {output}",
        "  Con error: a.pkl",
        "  Con error: d.pkl",
    ]
    assert done.stderr.count("Qué hacer: ") == 2


@pytest.mark.parametrize(
    ("content", "more", "expected"),
    [
        pytest.param([1, 2], (), ["Resumen: 1 dividido.", "  Los sub-batches están en "], id="ok"),
        pytest.param({"no": "list"}, (), ["Resumen: 1 con error."], id="failed"),
        pytest.param([1], ("--verify",), ["Resumen: 1 con error."], id="not-equal"),
    ],
)
def test_what_the_line_of_a_single_file_told_is_not_told_again(
    tmp_path: Path, content: object, more: tuple[str, ...], expected: list[str]
) -> None:
    source = write_batch(tmp_path / "a.pkl", content)
    done = split("-i", source, "-o", tmp_path / "out", *more)
    found = [line.replace("distinto o con error", "con error") for line in summary(done.stdout)]
    assert [line.replace(str(tmp_path / "out"), "") for line in found] == expected
    assert not re.search(r"\b0 (divid|omit|con|igual|dist)", done.stdout)


def test_originals_that_went_and_stayed_are_counted(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    sizes = [
        write_batch(source / f"{name}.pkl", [os.urandom(n)]).stat().st_size
        for name, n in (("a", 70_000), ("b", 50_000))
    ]
    write_batch(source / "bad.pkl", "not a list")
    (source / "link.pkl").symlink_to(write_batch(tmp_path / "elsewhere.pkl", [1]))
    done = split("-i", source, "-o", output, "--delete-original", "--yes")
    (line,) = lines_of(done.stdout, "  Originales: ")
    freed = f"{round(sum(sizes) / 1000)} kB"
    assert line == f"  Originales: 2 eliminados, {freed} liberados; 2 conservados."
    (source / "bad.pkl").unlink()
    again = split("-i", source, "-o", output, "--verify", "--delete-original", "--yes")
    assert lines_of(again.stdout, "  Originales: ") == ["  Originales: 1 conservado."]
    assert "Originales" not in split("-i", source, "-o", output, "--verify").stdout


def test_the_names_of_sets_that_differ_end_the_verification(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    for name in ("a", "b", "c"):
        write_batch(source / f"{name}.pkl", [1])
    assert split("-i", source, "-o", output).returncode == 0
    (output / "b_sub0000.pkl.gz").unlink()
    done = split("-i", source, "-o", output, "--verify")
    first, *more = summary(done.stdout)
    assert re.fullmatch(r"Resumen: 2 iguales, 1 distinto o con error; \d\.\d s\.", first)
    assert more == ["  Con error: b.pkl"]


def test_a_loader_is_told_the_memory_of_its_cache_and_of_the_one_it_loads(tmp_path: Path) -> None:
    sizes = [1_000_000, 2_000_000, 3_000_000, 4_000_000]
    source = write_batch(tmp_path / "a.pkl.gz", [bytes(n) for n in sizes])
    args = ("-i", source, "-o", tmp_path / "out")
    (line,) = lines_of(split(*args, "-n", 1).stdout, "  Un cargador con ")
    assert line.startswith(
        "  Un cargador con 2 sub-batches en caché y otro cargándose necesitará unos 9 MB de memoria"
    )
    assert "Un cargador" not in split(*args, "--skip-existing").stdout
    two = split("-i", source, "-o", tmp_path / "two", "-n", 2).stdout
    assert "Un cargador" not in two  # there are no three


def test_whether_isal_is_used_is_told(tmp_path: Path) -> None:
    source = write_batch(tmp_path / "a.pkl", [1])
    dry = ("-i", source, "-o", tmp_path / "out", "--dry-run")
    assert split_without(NO_ISAL, "--version").stdout.endswith(", sin isal)\n")
    assert split_without(NO_ISAL, *dry).stdout.splitlines()[-1].startswith("Gzip: sin isal;")
    stand_in = (
        "import zlib\nsys.modules['isal'] = sys.modules['isal.isal_zlib'] = type(sys)('isal')\n"
    )
    stand_in += "vars(sys.modules['isal']).update(vars(zlib))"
    if importlib.util.find_spec("isal"):
        stand_in = ""
    assert split_without(stand_in, "--version").stdout.endswith(", con isal)\n")
    assert split_without(stand_in, *dry).stdout.splitlines()[-1] == "Gzip: con isal."


# What is not said


@pytest.mark.parametrize("flag", ["--quiet", "-q"])
def test_quiet_prints_nothing_on_success(folders: Folders, flag: str) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    done = split(*folders.args(flag))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert names(folders.output) == sub_names("a", 1)


def test_quiet_still_prints_errors(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", "not a list")
    done = split(*folders.args("--quiet"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "a.pkl.gz" in done.stderr


def test_quiet_shows_no_bar_on_a_terminal(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    done = split_on_terminal(*folders.args("--quiet"))
    assert (done.returncode, done.stdout, done.terminal) == (0, "", "")


def test_no_control_characters_without_a_terminal(folders: Folders) -> None:
    write_batch(folders.source / "good \x1b[31m\r\t.pkl.gz", [1, 2, 3])
    write_batch(folders.source / "bad \x1b[31m\r\t\x9b.pkl.gz", "not a list")
    done = split(*folders.args())
    assert done.returncode == 1
    assert "good " in done.stdout
    assert "bad " in done.stderr
    assert not CONTROL_CHARACTERS.search(done.stdout + done.stderr)


def test_newline_in_a_name_breaks_no_line_of_the_report(folders: Folders) -> None:
    write_batch(folders.source / "a\nResumen: 9 divididos.pkl", [1])
    done = split(*folders.args())
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 4  # start, report, summary, folder


# Numbers


@pytest.mark.parametrize(
    ("n_bytes", "expected"),
    [
        (0, "0 B"),
        (18, "18 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1024, "1.02 kB"),
        (99_960, "100 kB"),
        (3_500_000_000, "3.5 GB"),
        (14_000_000_000, "14 GB"),
        (5_000_000_000_000, "5 TB"),
    ],
)
def test_a_size_has_the_form_of_the_guide(n_bytes: int, expected: str) -> None:
    assert divide_conquer.format_size(n_bytes) == expected
    assert re.fullmatch(SIZE, expected) or n_bytes == 0


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (60, "1 min 0 s"),
        (3599.7, "1 h 0 min"),
        (9000, "2 h 30 min"),
    ],
)
def test_a_time_is_told_in_words(seconds: float, expected: str) -> None:
    assert divide_conquer._format_time(seconds) == expected


def test_the_example_generator_tells_sizes_in_the_same_form(tmp_path: Path) -> None:
    script = Path(__file__).parent / "make_traces.py"
    args = [str(tmp_path), "--files", "1", "--traces", "2", "--layers", "1"]
    done = subprocess.run(
        [*command()[:1], str(script), *args], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(rf"\S+/batch_0000\.pkl\.gz: 2 traces, {SIZE}\n", done.stdout)
