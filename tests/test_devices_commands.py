"""bblab devices, names for devices in lab.toml, and bench on one of them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from bblab.errors import BblabError
from bblab.lab import settings
from bblab.latency import explain, machine_words

Command = Callable[..., "object"]  # the fixture `bblab`, whose answer has code, out and err

TEXT = """# my lab
title = "mine"   # kept

[devices.pi]     # on the shelf
address = "ssh:pi@board"

# of the phone
[devices."old-phone"]
address = "adb:X"
cores = "little"

[other]
x = [
  1,  # one
]
"""


@pytest.fixture(autouse=True)
def nobody_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever phones the person who runs the tests has connected are none of ours."""
    monkeypatch.setattr("bblab.lab.devices._connected_phones", lambda: ([], None))


# Text -----------------------------------------------------------------------------------------------------------


def test_a_device_is_added_at_the_end_and_all_else_stays() -> None:
    made = settings.with_table(TEXT, "devices", "jetson", {"address": "ssh:j@b", "cooldown_s": 5.0}, Path("lab.toml"))
    assert made == TEXT + '\n[devices.jetson]\naddress = "ssh:j@b"\ncooldown_s = 5.0\n'


def test_into_an_empty_file_goes_the_table_alone() -> None:
    for text in ("", "\n"):
        made = settings.with_table(text, "devices", "pi", {"address": "ssh:p@b"}, Path("lab.toml"))
        assert made == '[devices.pi]\naddress = "ssh:p@b"\n'


def test_a_last_line_without_its_end_is_not_glued() -> None:
    made = settings.with_table("x = 1", "devices", "pi", {"address": "a:b"}, Path("lab.toml"))
    assert tomllib.loads(made) == {"x": 1, "devices": {"pi": {"address": "a:b"}}}


@pytest.mark.parametrize("value", ['with "quotes" and \\', "ünï\tcode", "\x7f\x01", "new\nline"])
def test_any_text_survives(value: str) -> None:
    made = settings.with_table("", "devices", "pi", {"address": value}, Path("lab.toml"))
    assert tomllib.loads(made)["devices"]["pi"]["address"] == value


def test_a_device_is_taken_out_with_its_lines_only() -> None:
    path = Path("lab.toml")
    made = settings.without_table(TEXT, "devices", "pi", path)
    assert made == TEXT.replace('[devices.pi]     # on the shelf\naddress = "ssh:pi@board"\n\n', "")
    made = settings.without_table(made, "devices", "old-phone", path)
    assert "# of the phone" in made and "old-phone" not in made and "x = [\n  1,  # one\n]" in made


def test_what_was_added_and_taken_out_again_leaves_the_file_as_it_was() -> None:
    path = Path("lab.toml")
    made = settings.with_table(TEXT, "devices", "new", {"address": "ssh:a@b"}, path)
    assert settings.without_table(made, "devices", "new", path) == TEXT
    made = settings.with_table("", "devices", "new", {"address": "ssh:a@b"}, path)
    assert settings.without_table(made, "devices", "new", path) == ""


@pytest.mark.parametrize(
    "text",
    [
        'devices = {pi = {address = "ssh:p@b"}}\n',
        '[devices]\npi.address = "ssh:p@b"\n',
        '[devices]\npi = {address = "ssh:p@b"}\n',
        'x = """\n[devices.pi]\n"""\n[devices.pi]\naddress = "ssh:p@b"\n',
    ],
)
def test_a_file_written_another_way_is_left_alone(text: str) -> None:
    with pytest.raises(BblabError, match=r"lab\.toml") as refused:
        settings.without_table(text, "devices", "pi", Path("lab.toml"))
    assert "by hand" in refused.value.hint


def test_an_inline_group_cannot_be_added_to_and_the_lines_are_shown() -> None:
    with pytest.raises(BblabError, match="in a way that bblab does not change") as refused:
        settings.with_table("devices = {}\n", "devices", "pi", {"address": "ssh:p@b"}, Path("lab.toml"))
    assert '[devices.pi]\naddress = "ssh:p@b"' in refused.value.hint


# Commands -------------------------------------------------------------------------------------------------------


def test_add_keeps_the_file_and_list_and_remove_know_it(bblab: Command, lab: Path) -> None:
    (lab / "lab.toml").write_text(TEXT)
    done = bblab("devices", "add", "jetson", "ssh:me@127.0.0.1:1", "--cores", "f0", "--python", "/opt/py/bin/python")
    assert done.code == 0 and "jetson is ssh:me@127.0.0.1:1 now, in" in done.out
    kept = (lab / "lab.toml").read_text()
    assert kept.startswith(TEXT)
    assert tomllib.loads(kept)["devices"]["jetson"] == {
        "address": "ssh:me@127.0.0.1:1",
        "cores": "f0",
        "python": "/opt/py/bin/python",
    }
    done = bblab("devices", "remove", "jetson")
    assert done.code == 0 and (lab / "lab.toml").read_text() == TEXT


def test_a_name_is_not_taken_twice_unless_it_is_replaced(bblab: Command, lab: Path) -> None:
    assert bblab("devices", "add", "pi", "ssh:a@b").code == 0
    done = bblab("devices", "add", "pi", "ssh:c@d")
    assert done.code == 2 and "already: ssh:a@b" in done.err and "--replace" in done.err
    assert bblab("devices", "add", "pi", "ssh:c@d", "--replace").code == 0
    assert tomllib.loads((lab / "lab.toml").read_text()) == {"devices": {"pi": {"address": "ssh:c@d"}}}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pi", "pi@board"), "is no address"),
        (("pi", "sssh:pi@board"), "did you mean 'ssh'"),
        (("pi", "ssh:pi@bo ard"), "ssh:USER@HOST"),
        (("host", "ssh:pi@board"), "cannot be called 'host'"),
        (("a b", "ssh:pi@board"), "cannot be called 'a b'"),
        (("pi", "ssh:pi@board", "--cores", "middle"), "cores 'middle'"),
        (("pi", "ssh:pi@board", "--cooldown", "3"), "no option 'cooldown_s'"),
        (("ph", "adb:X", "--python", "python3"), "no option 'python'"),
        (("ph", "adb:X", "--cooldown", "-3"), "cooldown_s is -3.0"),
    ],
)
def test_a_wrong_device_is_refused_and_nothing_is_written(
    bblab: Command, lab: Path, words: tuple[str, ...], said: str
) -> None:
    done = bblab("devices", "add", *words)
    assert done.code == 2 and said in done.err
    assert not (lab / "lab.toml").exists()


def test_an_unknown_device_lists_the_near_ones(bblab: Command, lab: Path) -> None:
    (lab / "lab.toml").write_text(TEXT)
    done = bblab("bench", "nanotrack", "--device", "pii")
    assert done.code == 2 and "no device 'pii'" in done.err and "did you mean 'pi'" in done.err
    done = bblab("devices", "remove", "old-fone")
    assert done.code == 2 and "did you mean 'old-phone'" in done.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[devices.pi\n", "line 1"),
        ("devices = 3\n", "devices is 3"),
        ('[devices.pi]\nadress = "ssh:p@b"\n', "the device pi has no address"),
        ('[devices.pi]\naddress = "ssh:p@b"\npyton = "x"\n', "no option 'pyton'"),
        ('[devices.pi]\naddress = "ssh:p@b"\ncores = 4\n', "cores is 4"),
        ('[devices.pi]\naddress = "ssh:p@b"\nkey = 4\n', "key is 4"),
    ],
)
def test_a_broken_settings_file_is_told_with_its_place(bblab: Command, lab: Path, text: str, said: str) -> None:
    (lab / "lab.toml").write_text(text)
    done = bblab("bench", "nanotrack", "--device", "pi", "--runtime", "nosuch")
    assert done.code in (1, 2) and said in done.err


def test_the_list_names_what_is_not_reachable_and_why(bblab: Command, lab: Path) -> None:
    pytest.importorskip("asyncssh")
    (lab / "lab.toml").write_text('[devices.pi]\naddress = "ssh:me@127.0.0.1:1"\n')
    done = bblab("devices", "--json", lab / "list.json")
    assert done.code == 0
    assert "host · ready" in done.out and "pi (ssh:me@127.0.0.1:1) · not ready" in done.out
    assert "cannot be reached" in done.out and "ssh -p 1 me@127.0.0.1 true" in done.out
    assert "verified on a real phone" in done.out and "SELinux" in done.out
    host, pi = json.loads((lab / "list.json").read_text())["devices"]
    assert "ort" in host["runtimes"] and host["state"] == "ready"
    assert pi["is_saved"] and pi["runtimes"] == []


def test_json_on_stdout_is_nothing_else(bblab: Command) -> None:
    done = bblab("devices", "--json", "-")
    assert [d["name"] for d in json.loads(done.out)["devices"]] == ["host"]


def test_a_phone_is_measured_with_ncnn_where_no_runtime_is_named(lab: Path) -> None:
    from bblab.lab import Lab

    (lab / "lab.toml").write_text(TEXT)
    mine = Lab(lab)
    assert [mine.usual_runtime(d) for d in ("host", "pi", "old-phone", "adb:Y")] == ["ort", "ort", "ncnn", "ncnn"]


# What differed --------------------------------------------------------------------------------------------------


def test_a_hot_phone_and_battery_saver_are_told() -> None:
    def row(status: int, is_saving: bool) -> dict[str, object]:
        state = {"thermal": {"status": status}, "battery": {"level_percent": 80}, "battery_saver": is_saving}
        return {"cpu_p10_s": 0.01 + status * 0.01, "conditions": {"before": state, "after": state}}

    said = explain(row(0, False), row(3, True))
    assert any("thermal status was 0, then 3" in text for text in said)
    assert any("battery saver was off then on" in text for text in said)
    words = machine_words({"thermal": {"status": 0}}, {"thermal": {"status": 2}, "battery": {"level_percent": 80}})
    assert "thermal status 0 → 2" in words and "battery ? → 80 %" in words
