"""What every command keeps: help with an example, JSON and nothing else on stdout, whole files, exit codes."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bblab import cli
from bblab.cli.commands import ABOUT
from bblab.errors import BblabError, RunError, SpecError
from bblab.lab import Lab, Partial, as_json
from bblab.rooms import Rooms

COMMANDS = sorted(ABOUT)
NET = "stages: {stem: {block: conv, out: 8, stride: 2}, a: {block: conv, out: 16, stride: 2}}\n"


@pytest.fixture
def profiled(bblab: Callable[..., Any], spec_file: Callable[..., Path]) -> Path:
    """A spec with two runs in this test's notebook."""
    spec = spec_file(NET)
    assert bblab("profile", spec, "--no-latency").code == 0
    assert bblab("profile", spec, "--no-latency", "--set", "a.kernel=5").code == 0
    return spec


# ---------------------------------------------------------------------------------------------- help and usage


def test_the_first_commands_are_there() -> None:
    assert set(COMMANDS) >= {"profile", "check", "specs", "blocks", "new", "recipes", "runs", "show", "find", "diff"}


def test_every_file_with_a_command_is_listed() -> None:
    files = Path(cli.__file__).parent.glob("*.py")
    having = {path.stem.removesuffix("_") for path in files if "\ndef register(" in path.read_text()}
    assert having == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_of_the_command(command: str, bblab: Callable[..., Any]) -> None:
    ran = bblab(command, "--help")
    assert not re.search(r"<(str|int|float|path)\b", ran.out), "an option's value is named by its type"
    assert ran.code == 0 and ran.err == ""
    assert f"Example: bblab {command}" in ran.out


def test_help_needs_no_torch_and_no_lab(tmp_path: Path) -> None:
    code = "import sys; from bblab.cli import main; assert main(['--help']) == 0; assert 'torch' not in sys.modules"
    env = {**os.environ, "BBLAB_LAB": str(tmp_path / "none")}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, capture_output=True)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["nope"],
        ["--nope"],
        ["profile"],
        ["profile", "--nope"],
        ["profile", "resnet18", "--budget", "soon"],
        ["profile", "resnet18", "--witness", "nobody"],
        ["profile", "resnet18", "--witness", ","],
        ["profile", "resnet18", "--json", "-", "--csv", "-"],
        ["check"],
        ["blocks", "nope"],
        ["new"],
        ["new", "mine"],
        ["show"],
        ["show", "one"],
        ["show", "1"],
        ["show", "-1"],
        ["show", "9" * 30],
        ["diff", "1"],
        ["diff", "1", "2"],
        ["find"],
        ["find", ""],
        ["find", "  "],
        ["runs", "--limit", "0"],
        ["runs", "--since", "tomorrow"],
        ["specs", "--json"],
        ["specs", "--json", ""],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_two_with_words_on_stderr(argv: list[str], bblab: Callable[..., Any]) -> None:
    ran = bblab(*argv)
    assert ran.code == 2
    assert ran.out == "" and ran.err.strip()


def test_no_command_shows_the_help(bblab: Callable[..., Any]) -> None:
    ran = bblab()
    assert ran.code == 2 and "profile" in ran.out + ran.err
    assert bblab("--version").code == 0


def test_an_unknown_id_says_what_is_known(profiled: Path, bblab: Callable[..., Any]) -> None:
    ran = bblab("show", 99)
    assert ran.code == 2 and "no run 99" in ran.err and "its newest run is 2" in ran.err


def test_nothing_found_is_no_failure(profiled: Path, bblab: Callable[..., Any]) -> None:
    ran = bblab("find", "0.987654")
    assert ran.code == 0 and "no stored value is 0.987654" in ran.out


# ---------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    "argv",
    [
        ["profile", "SPEC", "--no-latency", "--no-verify"],
        ["profile", "SPEC", "SPEC@stem", "--no-latency", "--no-verify", "--layers"],
        ["check", "SPEC"],
        ["check", "--rules"],
        ["blocks"],
        ["blocks", "conv"],
        ["recipes"],
        ["runs"],
        ["show", "1"],
        ["show", "1", "--samples"],
        ["find", "net"],
        ["diff", "1", "2"],
    ],
    ids=" ".join,
)
def test_json_on_stdout_is_json_and_nothing_else(
    argv: list[str], profiled: Path, bblab: Callable[..., Any], tmp_path: Path
) -> None:
    argv = [a.replace("SPEC", str(profiled)) for a in argv]
    shown = bblab(*argv, "--json", "-")
    assert shown.code == 0
    value = json.loads(shown.out)
    assert value
    file = tmp_path / "out.json"
    written = bblab(*argv, "--json", file)
    assert written.code == 0 and written.out.strip(), "a person still sees the table"
    again = json.loads(file.read_text())
    if argv[0] in ("check", "blocks", "recipes", "show", "diff"):
        assert again == value
    assert not list(tmp_path.glob("*.partial"))


def test_every_spec_is_listed_also_a_broken_one(
    bblab: Callable[..., Any], lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = Rooms.files
    monkeypatch.setattr(Rooms, "files", lambda *a: {n: p for n, p in every(*a).items() if n in ("broken", "nanotrack")})
    (lab / "arch_specs").mkdir()
    (lab / "arch_specs" / "broken.yaml").write_text("stages: 5")
    ran = bblab("specs", "--json", "-")
    rows = json.loads(ran.out)
    assert ran.code == 0
    assert [(r["name"], r["origin"]) for r in rows] == [("nanotrack", "built-in"), ("broken", "lab")]
    assert rows[0]["stride"] == 16 and rows[0]["params"]["deploy"] > 0 and not rows[0]["error"]
    assert "broken.yaml:1:9: stages must be a map" in rows[1]["error"]
    shown = " ".join(bblab("specs").out.split())
    assert "must be a map" in shown and "--like nanotrack" in shown


def test_warnings_go_to_stderr(profiled: Path, bblab: Callable[..., Any], lab: Path) -> None:
    (lab / "lab.sqlite").write_bytes(b"no notebook at all" * 100)
    ran = bblab("profile", profiled, "--no-latency", "--no-verify", "--json", "-")
    assert ran.code == 0 and len(json.loads(ran.out)) == 1
    assert "was damaged" in ran.err and "kept as lab.sqlite.corrupt-" in ran.err


def test_json_has_no_nan() -> None:
    assert json.loads(as_json({"a": float("nan"), "b": [float("inf"), 1.5]})) == {"a": None, "b": [None, 1.5]}


def test_a_file_is_whole_or_as_it_was(
    profiled: Path, bblab: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "out.json"
    file.write_text("before")

    def full(self: Path, *_: Any, **__: Any) -> int:
        with self.open("w") as half:
            half.write("[{")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        ran = bblab("blocks", "--json", file)
    assert ran.code == 1 and "No space left on device" in ran.err
    assert file.read_text() == "before"
    assert not list(tmp_path.glob("*.partial"))


def test_a_link_keeps_pointing_and_a_device_stays_one(bblab: Callable[..., Any], tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    assert bblab("recipes", "--json", link).code == 0
    assert link.is_symlink() and json.loads(target.read_text())
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert bblab("recipes", "--json", pipe).code == 0
        assert json.loads(os.read(reader, 1 << 16))
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("option", ["--json", "--csv"])
def test_an_unwritable_target_is_refused_before_any_work(
    option: str, profiled: Path, bblab: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr(Lab, "profile", work)
    for target, why in ((tmp_path, "it is a folder"), (tmp_path / "no" / "x", "there is no folder")):
        ran = bblab("profile", profiled, option, target)
        assert ran.code == 1 and "cannot be written" in ran.err and why in ran.err


# ---------------------------------------------------------------------------------------------- exit codes


def test_check_fails_on_an_unwaived_error_only(bblab: Callable[..., Any], spec_file: Callable[..., Path]) -> None:
    # a map of 64x64 at 127 px cannot serve nanotrack's 8x8
    text = "tracker: {for: nanotrack}\nstages: {a: {block: conv, out: 16, stride: 2}}\n"
    ran = bblab("check", spec_file(text), "--json", "-")
    errors = {f["rule"] for f in json.loads(ran.out)[0]["findings"] if f["severity"] == "error"}
    assert ran.code == 1 and errors
    waived = "waive: {" + ", ".join(f"{rule}: because" for rule in errors) + "}\n"
    assert bblab("check", spec_file(text + waived)).code == 0
    assert bblab("profile", spec_file(text), "--no-latency", "--no-verify").code == 0


def test_what_is_said_of_several_places_is_said_once(bblab: Callable[..., Any]) -> None:
    whole = bblab("check", "googlenet").out
    assert whole.count("parallel branches") == 1  # of nine modules
    flat = " ".join(whole.split())
    assert "stage3.1, stage3.2, stage4.1, stage4.2, stage4.3, stage4.4, stage4.5, stage5.1, stage5.2:" in flat
    assert "googlenet 11 notes" in flat
    card = " ".join(bblab("profile", "googlenet", "--no-latency", "--no-verify").out.split())
    assert "stage3.1, stage3.2, stage4.1 and 6 more: 4 parallel branches" in card


def test_what_cannot_be_parsed_and_what_cannot_be_built_come_in_one_round(
    bblab: Callable[..., Any], spec_file: Callable[..., Path]
) -> None:
    rows = (
        "  a: {block: conv, out: 8, groups: 3}\n"
        "  b: {block: conv, out: 9, GROUPS}\n"
        "  c: {block: conv, out: 9, groups: 5}\n"
    )
    both = spec_file("stages:\n" + rows.replace("GROUPS", "strid: 2"), "both")
    unbuilt = spec_file("stages:\n" + rows.replace("GROUPS", "groups: 2"), "unbuilt")
    alone = bblab("check", both)
    assert alone.code == 2
    # Row c stands behind the mistake that cannot be parsed: what reaches it is not known yet.
    places = [(both, 2, True), (both, 3, True), (both, 4, False)]
    assert [f"{file}:{line}:" in alone.err for file, line, _ in places] == [is_told for *_, is_told in places]
    assert "groups 3 does not divide" in alone.err and "no argument 'strid'" in alone.err
    for command in ("check", "profile"):
        together = bblab(command, unbuilt, both).err
        told = ((both, 2), (both, 3), (unbuilt, 2), (unbuilt, 3), (unbuilt, 4))
        assert all(f"{file}:{line}:" in together for file, line in told)
    two = bblab("check", unbuilt, spec_file("stages:\n" + rows.replace("GROUPS", "groups: 2"), "other"))
    assert two.code == 2 and f"{unbuilt}:4:" in two.err and "other.yaml:4:" in two.err


def test_runs_of_an_unknown_kind_or_name_are_answered_with_the_known(bblab: Callable[..., Any]) -> None:
    bblab("record", "mobileone_s0", "--metric", "vot2018_eao=0.2")
    assert "did you mean 'tracker_score'" in bblab("runs", "--kind", "tracker_scor").out
    assert "did you mean 'mobileone_s0'" in bblab("runs", "--name", "mobileone_s1").out
    assert "did you mean" not in bblab("runs", "--kind", "tracker_score").out


def test_the_mistakes_of_several_specs_come_together(bblab: Callable[..., Any], spec_file: Callable[..., Path]) -> None:
    one, two = spec_file("stages: 5", "one"), spec_file("stages: {a: {block: covn}}", "two")
    for command in ("check", "profile"):
        ran = bblab(command, one, two, "nope")
        assert ran.code == 2
        assert f"{one}:1:9" in ran.err and f"{two}:1:21" in ran.err and "no spec 'nope'" in ran.err


def test_markup_in_a_users_words_is_shown_as_it_is(
    bblab: Callable[..., Any], spec_file: Callable[..., Path], lab: Path
) -> None:
    (lab / "arch_specs").mkdir()
    text = "name: '[red]net[end]'\nabout: '[bold]x[nope]'\nstages: {a: {block: conv, out: 8, stride: 2}}"
    (lab / "arch_specs" / "net.yaml").write_text(text)
    for argv in (["check", "net"], ["profile", "net", "--no-latency", "--no-verify", "--layers"], ["runs"]):
        assert "[red]net[end]" in bblab(*argv).out
    assert "int | list[int]" in bblab("blocks", "conv").out


def test_defaults_are_shown_as_a_spec_writes_them(bblab: Callable[..., Any]) -> None:
    out = " ".join(bblab("blocks", "conv").out.split())
    assert "groups int 1" in out and "norm bool true" in out and "bias bool | None null" in out


# ---------------------------------------------------------------------------------------------- without torch


def test_a_remembered_spec_is_profiled_without_torch(profiled: Path, bblab: Callable[..., Any]) -> None:
    assert bblab("check", profiled).code == 0
    code = (
        "import sys; from bblab.cli import main\n"
        f"assert main(['profile', {str(profiled)!r}, '--no-latency', '--json', '-']) == 0\n"
        f"assert main(['check', {str(profiled)!r}]) == 0\n"
        "assert main(['blocks']) == 0 and main(['runs']) == 0 and main(['show', '1']) == 0\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert '"deploy_max_rel_diff": 0.0' not in ran.stdout and '"deploy_max_rel_diff": null' not in ran.stdout


# ---------------------------------------------------------------------------------------------- new


def test_new_copies_a_spec_with_its_comments(bblab: Callable[..., Any], lab: Path) -> None:
    source = lab / "source.yaml"
    source.write_text(f"# why\nname: source\nabout: >\n  long\n  text\n{NET}# end\n")
    ran = bblab("new", "mine", "--like", source)
    written = lab / "arch_specs" / "mine.yaml"
    assert ran.code == 0 and "arch_specs/mine.yaml" in ran.out and "bblab profile mine" in ran.out
    text = written.read_text()
    assert text.startswith("# why\nname: mine\nabout: Made from source;") and text.endswith("# end\n")
    assert Lab().spec("mine").spec_id == Lab().spec(str(source)).spec_id


AWKWARD = {
    "flow style": "{name: x, " + NET.strip().replace("stages: ", "stages: ") + "}",
    "quoted keys": '"name": x\n"about": y\n' + NET,
    "byte order mark": "\ufeffname: x\n" + NET,
    "document marker": "---\n" + NET,
    "blank line in a text": "name: x\nabout: |\n  one\n\n  two\n" + NET,
    "windows": ("name: x\nabout: y\n" + NET).replace("\n", "\r\n"),
    "no name": NET,
    "words that look like others": NET + "waive: {even-map: 'no', groups: '010'}",
}


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_new_makes_the_same_net_of_every_file(
    text: str, bblab: Callable[..., Any], spec_file: Callable[..., Path]
) -> None:
    source = spec_file(text)
    assert bblab("new", "mine", "--like", source).code == 0
    made, of = Lab().spec("mine"), Lab().spec(str(source))
    assert (made.name, made.spec_id, made.waive) == ("mine", of.spec_id, of.waive)


@pytest.mark.parametrize(
    "like", ["mobileone_k5_se", "nanotrack", "mobileone_s0@s16", "mobileone_k5_se@s8", "mobilenetv3_small@stem"]
)
def test_new_with_set_or_cut_is_the_net_that_was_asked_for(like: str, bblab: Callable[..., Any]) -> None:
    edit = "stem.out=24"
    assert bblab("new", "mine", "--like", like, "--set", edit, "--set", "input=[3, 160, 160]").code == 0
    asked = Lab().spec(like, [edit, "input=[3, 160, 160]"])
    made = Lab().spec("mine")
    assert made.spec_id == asked.spec_id and made.waive == asked.waive and made.name == "mine"


def test_new_never_overwrites(bblab: Callable[..., Any], lab: Path) -> None:
    assert bblab("new", "mine", "--like", "resnet18").code == 0
    file = lab / "arch_specs" / "mine.yaml"
    file.write_text("# work of an afternoon")
    ran = bblab("new", "mine", "--like", "mobileone_s0")
    assert ran.code == 2 and "exists already" in ran.err
    assert file.read_text() == "# work of an afternoon"
    (lab / "arch_specs" / "link.yaml").symlink_to("nowhere")
    assert bblab("new", "link", "--like", "resnet18").code == 2
    assert bblab("new", "resnet18", "--like", "resnet18").code == 2
    assert sorted(p.name for p in (lab / "arch_specs").iterdir()) == ["link.yaml", "mine.yaml"]


def test_new_leaves_a_file_that_came_meanwhile(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = lab / "arch_specs" / "mine.yaml"
    write = Path.write_text

    def late(self: Path, *args: Any, **more: Any) -> int:
        write(target, "# another process was faster")
        return write(self, *args, **more)

    monkeypatch.setattr(Path, "write_text", late)
    with pytest.raises(BblabError, match="exists already"):
        Lab().new("mine", "resnet18")
    assert [p.name for p in target.parent.iterdir()] == ["mine.yaml"]
    assert target.read_text() == "# another process was faster"


@pytest.mark.parametrize("name", ["", " ", "a b", "a/b", "../a", "a.yaml", ".a", "é", "a\nb", "x" * 101, "@", "a@s16"])
def test_new_refuses_odd_names(name: str, bblab: Callable[..., Any], lab: Path) -> None:
    ran = bblab("new", name, "--like", "resnet18")
    assert ran.code == 2 and "is no name for a spec" in ran.err
    assert not list(lab.iterdir())


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--like", "nope"], "no spec 'nope'"),
        (["--like", "timm:resnet18"], "its layers are the library's"),
        (["--like", "resnet18", "--set", "nope.out=3"], "no stage or top-level key 'nope'"),
        (["--like", "resnet18@s7"], "no stage at stride 7"),
    ],
)
def test_new_from_nothing_writes_nothing(argv: list[str], said: str, bblab: Callable[..., Any], lab: Path) -> None:
    ran = bblab("new", "mine", *argv)
    assert ran.code == 2 and said in ran.err and not list(lab.iterdir())


# ---------------------------------------------------------------------------------------------- the Lab behind it


def test_two_nets_of_one_name_keep_their_own_timings(
    lab: Path, spec_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (lab / "other").mkdir()
    one = spec_file("name: resnet18\n" + NET)
    two = lab / "other" / "net.yaml"
    two.write_text("name: resnet18\n" + NET.replace("16", "24"))
    asked: dict[str, str] = {}

    def run(candidates: list[Any], references: Any, **_: Any) -> Any:
        asked.update({c.label: c.key for c in [*candidates, *references]})
        raise RunError("enough")

    monkeypatch.setattr("bblab.latency.session.run", run)
    with pytest.raises(Partial, match="enough"):
        Lab().profile([str(one), str(two)], verify=False, store=False)
    # two nets in two forms, and the built-in reference, which is neither of them
    assert len(asked) == len(set(asked.values())) == 5


def test_the_reference_is_ours_in_every_lab(lab: Path) -> None:
    (lab / "arch_specs").mkdir()
    ours = Lab().spec("resnet18").spec_id
    (lab / "arch_specs" / "resnet18.yaml").write_text(NET)
    assert Lab().spec("resnet18").spec_id != ours
    assert Lab()._built_in("resnet18").spec_id == ours


def test_a_net_too_large_for_the_machine_is_not_built(lab: Path, spec_file: Callable[..., Path]) -> None:
    big = "stages: {a: {block: conv, out: 16384, kernel: 255}, b: {block: conv, kernel: 255}}"
    opened = Lab()
    (found,) = opened.profile([str(spec_file(big))], latency=True, verify=True, store=False)
    assert found.deploy_max_rel_diff is None and not found.timings
    assert len([n for n in opened.notices if "GB, and this machine has" in n]) == 2


def test_a_spec_error_holds_its_complaints(lab: Path, spec_file: Callable[..., Path]) -> None:
    with pytest.raises(SpecError) as caught:
        Lab().profile([str(spec_file("stages: {a: {block: covn}, b: {block: cnov}}"))])
    assert [c.mark.column for c in caught.value.complaints if c.mark] == [21, 39]
