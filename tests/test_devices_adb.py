"""A phone behind adb: Debian's real adb client and a test-only adbd on loopback, which runs what arrives in a shell."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bblab.errors import BblabError, RunError
from bblab.latency import Broken, Candidate, Plan, devices, measure, wire
from bblab.latency.devices import cooling, remote, state, tools
from bblab.latency.devices.cores import Cluster, choose, clusters, parse_cpu_list, parse_mask, words

HERE = Path(__file__).parent
ADB = shutil.which("adb")
QEMU = shutil.which("qemu-aarch64-static")
GCC = shutil.which("aarch64-linux-gnu-gcc")
needs_adb = pytest.mark.skipif(ADB is None, reason="needs adb: apt-get install adb")
pytest.importorskip("adbutils", reason="needs adbutils")


# Pure parts -----------------------------------------------------------------------------------------------------


def eight_cores() -> tuple[Cluster, ...]:
    """As a Pixel 7: two fast, two middle, four slow."""
    hz = {**dict.fromkeys(range(4), 1_803_000_000), 4: 2_348_000_000, 5: 2_348_000_000}
    hz |= {6: 2_850_000_000, 7: 2_850_000_000}
    return clusters(hz, {}, range(8))


def test_clusters_are_cores_of_one_speed_the_fastest_first() -> None:
    assert [c.cpus for c in eight_cores()] == [(6, 7), (4, 5), (0, 1, 2, 3)]
    assert words(eight_cores()) == "2 at 2.85 GHz + 2 at 2.35 GHz + 4 at 1.80 GHz"


def test_capacity_tells_where_frequencies_cannot_be_read() -> None:
    assert [c.cpus for c in clusters({}, {0: 250, 1: 250, 2: 1024, 3: 1024}, range(4))] == [(2, 3), (0, 1)]


def test_cores_that_are_off_do_not_count() -> None:
    assert [c.cpus for c in clusters({7: 3_000_000_000}, {}, range(7))] == [tuple(range(7))]


@pytest.mark.parametrize(
    ("cores", "threads", "mask"),
    [("big", 1, "c0"), ("big", 2, "c0"), ("big", 3, "f0"), ("little", 1, "f"), ("little", 5, "3f"), ("f0", 1, "f0")],
)
def test_masks_follow_the_clusters(cores: str, threads: int, mask: str) -> None:
    assert choose(cores, eight_cores(), threads).mask == mask


def test_more_threads_than_cores_of_a_kind_is_said() -> None:
    assert choose("big", eight_cores(), 2).note == ""
    assert "3 threads are more than the big cores: 2 kinds" in choose("big", eight_cores(), 3).note


def test_one_kind_of_core_is_not_pinned_and_little_says_so() -> None:
    same = clusters({}, {}, range(4))
    assert choose("big", same, 1).cpus == () and choose("all", eight_cores(), 1).cpus == ()
    assert "no little cores" in choose("little", same, 1).note


@pytest.mark.parametrize("text", ["", "0", "-1", "bigg", "0xzz", "4-7"])
def test_a_wrong_mask_is_refused(text: str) -> None:
    with pytest.raises(BblabError, match="cores ") as refused:
        parse_mask(text)
    assert "f0 is cores 4 to 7" in refused.value.hint


def test_a_mask_of_cores_that_are_not_there_is_refused() -> None:
    with pytest.raises(BblabError, match="not online there"):
        choose("100", eight_cores(), 1)


def test_the_kernels_lists_of_cores_are_read() -> None:
    assert parse_cpu_list("0-3,6\n") == [0, 1, 2, 3, 6]
    assert parse_cpu_list("") == []


def test_thermal_status_and_current_temperatures_are_read() -> None:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("fake_adbd", HERE / "fake_adbd.py")
    assert spec and spec.loader
    phone = module_from_spec(spec)
    spec.loader.exec_module(phone)
    # From the HAL, not the cached 99 degrees; 0.0 is no reading.
    assert state.thermal(phone.THERMAL.format(status=2)) == {
        "status": 2,
        "temperatures_c": {"VIRTUAL-SKIN": 31.25, "BIG": 38.1},
    }
    assert state.battery(phone.BATTERY) == {"level_percent": 76, "temperature_c": 28.7, "plugged": ["usb"]}


@pytest.mark.parametrize("text", ["", "Can't find service: thermalservice\n", "\x00\xff", "Thermal Status: hot"])
def test_a_phone_that_tells_no_temperature_is_no_error(text: str) -> None:
    assert state.thermal(text) == {} and state.battery(text) == {} and state.properties(text) == {}


def test_what_cannot_be_read_is_named_and_nothing_of_the_host_slips_in() -> None:
    found = state.record(f"grep: nothing\n{state.KERNEL}Linux 4.9 armv7l\n")
    assert found["os"] == "Linux 4.9 armv7l"
    assert set(found) == {"time_utc", "os", "absent"}
    assert {"load_average", "cpu_model", "memory_bytes", "frequencies_hz", "cores", "thermal_c"} <= set(found["absent"])


@pytest.mark.parametrize(
    ("status", "now_s", "cold_s", "reason"),
    [
        (0, 0.0031, 0.0030, ""),
        (None, 0.0031, 0.0030, ""),
        (2, 0.0030, 0.0030, "thermal status 2 (moderate)"),
        (0, 0.0040, 0.0030, "its clock is slow: the speedometer takes 4 ms, 3 ms when cold"),
        (9, None, None, "thermal status 9 (unknown)"),
    ],
)
def test_a_phone_is_warm_by_its_status_or_by_its_clock(
    status: int | None, now_s: float | None, cold_s: float | None, reason: str
) -> None:
    assert cooling.too_warm(status, now_s, cold_s) == reason


class Fridge:
    """A phone that cools while one waits: `status` and the speedometer at each look, on a fake clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, looks: list[tuple[int | None, float]], limit_s: float) -> None:
        self.now, self.looks, self.told, self.remarks = 0.0, iter(looks), [], []
        self.folder = "/data/local/tmp/x"
        monkeypatch.setattr(cooling, "speedometer_s", lambda remote, runtime: ("kernel", self.seconds))
        self.cooling = cooling.Cooling(
            "adb:x, big cores", limit_s, self.status, clock=lambda: self.now, sleep=self.sleep
        )

    def status(self, phone: object) -> int | None:
        found, self.seconds = next(self.looks)
        return found

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def remark(self, text: str) -> None:
        self.remarks.append(text)

    def settle(self) -> None:
        self.cooling(self, "ncnn", self.told.append)  # type: ignore[arg-type]


@pytest.fixture
def cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BBLAB_CACHE", str(tmp_path / "cache"))


def test_cooling_waits_for_the_status_and_then_for_the_clock(cold: None, monkeypatch: pytest.MonkeyPatch) -> None:
    Fridge(monkeypatch, [(0, 0.003)], 300).settle()  # the first contact says what cold is
    phone = Fridge(monkeypatch, [(2, 0.0), (1, 0.0), (0, 0.004), (0, 0.0032)], 300)
    phone.settle()
    assert phone.now == 3 * cooling.EVERY_S
    assert [t.partition(": ")[2] for t in phone.told] == [
        "thermal status 2 (moderate)",
        "thermal status 1 (light)",
        "its clock is slow: the speedometer takes 4 ms, 3 ms when cold",
    ]
    assert phone.told[0].startswith("cooling down (300 s at most)") and phone.remarks == []


def test_cooling_is_bounded_for_the_whole_measurement_and_says_so(cold: None, monkeypatch: pytest.MonkeyPatch) -> None:
    phone = Fridge(monkeypatch, [(3, 0.0)] * 20, 25)
    phone.settle()
    assert phone.now == 25
    assert phone.remarks == ["measured warm: after cooling down for 25 s, thermal status 3 (severe)"]
    phone.settle()  # the next worker does not wait again
    assert phone.now == 25


def test_a_faster_clock_is_the_new_cold_value(cold: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds in (0.004, 0.003):
        Fridge(monkeypatch, [(0, seconds)], 300).settle()
    phone = Fridge(monkeypatch, [(0, 0.004), (0, 0.003)], 300)
    phone.settle()
    assert phone.now == cooling.EVERY_S


def test_a_phone_without_thermal_status_is_judged_by_its_clock_alone(
    cold: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = Fridge(monkeypatch, [(None, 0.003)], 300)
    phone.settle()
    assert phone.now == 0 and "tells no thermal status" in phone.remarks[0]


@pytest.mark.parametrize("value", ["soon", -1, float("nan")])
def test_a_wrong_cool_down_is_refused(value: object) -> None:
    with pytest.raises(BblabError, match="cooldown_s"):
        devices.find("adb:X", {"cooldown_s": value})


# Programs of others ---------------------------------------------------------------------------------------------

BENCHNCNN = """loop_count = 8
num_threads = 1
powersave = 0
gpu_device = -1
cooling_down = 0
   model.ncnn.param  min =    8.84  max =    9.89  avg =    8.97
"""
BENCHMARK_MODEL = """STARTING!
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
Running benchmark for at least 5 iterations and at least 0 seconds but terminate if exceeding 150 seconds.
count=5 first=99000 curr=41000 min=40000 max=99000 avg=52000 std=23000

count=50 first=40100 curr=38512 min=38001 max=41000 avg=38900.5 std=500 p5=38100 median=38800 p95=40900

Inference timings in us: Init: 1234, First inference: 99000, Warmup (avg): 52000, Inference (avg): 38900.5
"""


def test_what_benchncnn_prints_is_read_in_seconds() -> None:
    turn = tools.parse_benchncnn(BENCHNCNN)
    assert (turn.min_s, turn.avg_s, turn.max_s) == pytest.approx((0.00884, 0.00897, 0.00989)) and turn.calls == 8


def test_of_benchmark_model_the_timed_calls_are_read_not_the_warm_up() -> None:
    turn = tools.parse_benchmark_model(BENCHMARK_MODEL)
    assert (turn.min_s, turn.max_s, turn.calls) == (0.038001, 0.041, 50)
    assert turn.avg_s == pytest.approx(0.0389005) and turn.median_s == pytest.approx(0.0388)
    assert tools.parse_benchmark_model("count=1 curr=39456\n") == tools.Turn(0.039456, 0.039456, 0.039456, 1)


@pytest.mark.parametrize("text", ["", "Segmentation fault", "min = nan  max = 1  avg = 2", "min = 3  max = 1  avg = 2"])
def test_what_holds_no_times_is_refused_and_shown(text: str) -> None:
    for parse in (tools.parse_benchncnn, tools.parse_benchmark_model):
        with pytest.raises(RunError, match="no times can be read") as refused:
            parse(text)
        assert text in refused.value.message


def test_turns_say_how_far_a_program_disagrees_with_itself() -> None:
    turns = tuple(tools.Turn(0.009, avg, 0.02, 10) for avg in (0.010, 0.013, 0.011))
    times = tools.ToolTimes("a", "benchncnn", "phone", 1, turns)
    assert times.avg_s == 0.011 and times.disagreement == pytest.approx(1.3)
    assert times.to_json()["follows_protocol"] is False


# A phone on loopback --------------------------------------------------------------------------------------------


@dataclass
class Phone:
    """A fake adbd and the adb server of this test's own."""

    root: Path
    port: int = 0
    flags: tuple[str, ...] = ()
    process: subprocess.Popen[str] | None = None
    others: list[Phone] = field(default_factory=list)

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self.port}"

    def plug(self) -> Phone:
        """Start adbd, on the same port as before, and connect."""
        self.process = subprocess.Popen(
            [
                *(sys.executable, str(HERE / "fake_adbd.py"), "--root", str(self.root), "--furnish"),
                *("--port", str(self.port or free_port()), *self.flags),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.port = int(self.process.stdout.readline().split()[1])
        adb("connect", self.serial)
        return self

    def unplug(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout
            self.process.stdout.close()
            self.process = None

    def device(self, **options: object) -> remote.Remote:
        found = devices.find(f"adb:{self.serial}", {"cooldown_s": 0, **options})
        assert isinstance(found, remote.Remote)
        return found

    def left(self) -> list[str]:
        return sorted(p.name for p in (self.root / "data/local/tmp").iterdir())


def free_port() -> int:
    """Outside 5555 to 5585, where adb looks for emulators."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found = int(probe.getsockname()[1])
    assert not 5555 <= found <= 5585
    return found


def adb(*words: str) -> str:
    return subprocess.run([str(ADB), *words], capture_output=True, text=True, timeout=60).stdout


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An adb server on a port of its own, with keys of its own."""
    if ADB is None:
        pytest.skip("needs adb: apt-get install adb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("ADB_MDNS", "0")
        subprocess.run([ADB, "start-server"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)
        yield
        adb("kill-server")


@pytest.fixture
def make(server: None, tmp_path: Path) -> Iterator[Callable[..., Phone]]:
    """Phones, gone after the test; what bblab left on them fails it."""
    made: list[Phone] = []

    def one(*flags: str) -> Phone:
        phone = Phone(tmp_path / f"phone{len(made)}", flags=flags)
        phone.root.mkdir()
        made.append(phone)
        return phone.plug()

    yield one
    for phone in made:
        phone.unplug()
        adb("disconnect", phone.serial)
    assert [phone.left() for phone in made] == [[] for _ in made]


@pytest.fixture
def phone(make: Callable[..., Phone]) -> Phone:
    return make()


def test_properties_thermal_battery_and_cores_are_recorded(phone: Phone) -> None:
    with phone.device() as device:
        found = device.conditions()
    assert found["android"]["model"] == "Loop 8" and found["android"]["sdk"] == "34"
    assert found["cpu_model"] == "NB8000" and found["os"] == "Linux 5.10.149-android13 aarch64"
    assert found["thermal"] == {"status": 0, "temperatures_c": {"VIRTUAL-SKIN": 31.25, "BIG": 38.1}}
    assert found["battery"]["temperature_c"] == 28.7 and found["battery_saver"] is False
    assert [c["cpus"] for c in found["clusters"]] == [[4, 5, 6, 7], [0, 1, 2, 3]]
    assert found["frequencies_hz"]["max"] == [1_800_000_000] * 4 + [2_850_000_000] * 4
    assert found["governor"] == ["sched_pixel"] and found["cores"] == 8
    assert devices.notes(device) == ()


def test_what_makes_a_phone_another_is_said(phone: Phone) -> None:
    (phone.root / "state/low_power").write_text("1\n")
    battery = phone.root / "state/battery"
    battery.write_text(battery.read_text().replace("level: 76", "level: 9"))
    (phone.root / "sys/devices/system/cpu/cpu7/cpufreq/scaling_max_freq").write_text("1000000\n")
    with phone.device() as device:
        device.conditions()
        said = " / ".join(devices.notes(device))
    assert "battery saver is on" in said and "battery is at 9 %" in said and "core(s) 7 was held below" in said


@pytest.mark.parametrize("flags", [(), ("--no-shell-v2",)])
def test_commands_tell_their_exit_code_with_and_without_shell_v2(
    make: Callable[..., Phone], flags: tuple[str, ...]
) -> None:
    with make(*flags).device() as device:
        said = device.link.sh("echo one; echo two >&2; exit 7")
        assert said.code == 7 and "one" in said.out and "two" in said.out + said.err
        assert device.link.sh("printf 'no newline'").out == "no newline"
        assert device.link.sh("seq 1 5000").out == "".join(f"{n}\n" for n in range(1, 5001))
        assert device.link.sh("true") == remote.Said(0, "", "")


def test_a_command_that_hangs_is_given_up(phone: Phone) -> None:
    with phone.device() as device, pytest.raises(remote.Lost, match=r"did not answer within 0\.5 s"):
        device.link.sh("sleep 30", 0.5)


def test_a_file_arrives_whole(phone: Phone, tmp_path: Path) -> None:
    file = tmp_path / "model.zip"
    file.write_bytes(os.urandom(1_000_000))
    with phone.device() as device:
        name = device.send(file)
        (folder,) = phone.left()
        assert (phone.root / "data/local/tmp" / folder / name).read_bytes() == file.read_bytes()


def test_a_full_phone_is_told_and_left_clean(make: Callable[..., Phone], tmp_path: Path) -> None:
    file = tmp_path / "model.zip"
    file.write_bytes(bytes(2_000_000))
    with (
        make("--quota", "1000000").device() as device,
        pytest.raises(RunError, match=r"m0-model.zip .2000000 bytes. could not be written: .*No space left") as told,
    ):
        device.send(file)
    assert "free some space on the phone" in told.value.hint


# Which phone ----------------------------------------------------------------------------------------------------


def test_no_phone_at_all_is_told(server: None) -> None:
    with pytest.raises(RunError, match="no phone is connected") as told, devices.find("adb:"):
        pass
    assert "USB debugging" in told.value.hint


def test_the_only_phone_needs_no_name_and_two_are_asked_back(make: Callable[..., Phone]) -> None:
    one = make()
    with devices.find("adb:", {"cooldown_s": 0}):
        assert len(one.left()) == 1
    two = make()
    with pytest.raises(BblabError, match="2 phones are connected") as told, devices.find("adb:"):
        pass
    assert one.serial in told.value.hint and two.serial in told.value.hint


def test_an_unknown_serial_lists_the_near_ones(phone: Phone) -> None:
    with pytest.raises(RunError, match="no phone adb:127") as told, devices.find("adb:127.0.0.1-x"):
        pass
    assert phone.serial in told.value.hint


def test_a_network_phone_that_is_not_there_is_told(server: None) -> None:
    with pytest.raises(RunError, match=r"adb:127\.0\.0\.1:\d+ cannot be reached"):
        devices.find(f"adb:127.0.0.1:{free_port()}").__enter__()


def test_a_phone_that_does_not_trust_us_says_what_to_tap(make: Callable[..., Phone]) -> None:
    phone = make("--unauthorised")
    with pytest.raises(RunError, match="is unauthorized") as told:
        phone.device().__enter__()
    assert "allow USB debugging" in told.value.hint


def test_a_phone_that_went_offline_is_told_and_comes_back(phone: Phone) -> None:
    phone.unplug()
    end = time.monotonic() + 10
    while "offline" not in adb("devices") and time.monotonic() < end:
        time.sleep(0.1)
    with pytest.raises(RunError, match=r"is offline|cannot be reached") as told:
        phone.device().__enter__()
    assert told.value.hint
    phone.plug()
    with phone.device() as device:
        assert device.link.sh("echo back").out == "back\n"


def test_without_adb_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BblabError, match="need adb, which is not installed") as told:
        devices.find("adb:X").__enter__()
    assert "apt-get install adb" in told.value.hint


# Workers on the phone -------------------------------------------------------------------------------------------

REQUEST = wire.Request("ncnn", 1, 0, 0, (wire.ModelFile("a", "a", (1, 3, 8, 8)),), ((0,), (0,)))
HELLO = (
    '{"kind":"hello","wire":2,"protocol":2,"runtime":"ncnn","runtime_version":"1","precision":"float32",'
    '"speedometer":"sh"}'
)
# A worker in the phone's shell: speed and call of each round, for a request with one model.
SCRIPT = """read line
say() {{ echo "BBLAB $1"; }}
say '{hello}'
say '{{"kind":"ready","models":1}}'
rounds=$(echo "$line" | sed 's/.*"orders": //; s/"probe".*//' | grep -o '\\[0\\]\\|\\[\\]' | wc -l)
r=0
while [ $r -lt $rounds ]; do
say '{{"kind":"speed","round":'$r',"wall_s":0.003,"cpu_s":0.003}}'
{act}
case "$line" in *'[0]'*) for state in cold warm warm warm; do
say '{{"kind":"call","round":'$r',"model":0,"state":"'$state'","wall_s":0.5,"cpu_s":0.25}}'; done;; esac
r=$((r+1))
done
say '{{"kind":"speed","round":'$r',"wall_s":0.003,"cpu_s":0.003}}'
say '{{"kind":"end","rounds":'$r'}}'
"""


def acting(device: remote.Remote, act: str = ":") -> remote.Remote:
    """The device with a worker of this script's; `act` runs in every round."""

    def engine(phone: remote.Remote, runtime: str) -> remote.Engine:
        phone.link.put(SCRIPT.format(hello=HELLO, act=act).encode(), f"{phone.folder}/worker.sh")
        return remote.Engine("sh worker.sh")

    device.engine_for = engine
    return device


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Candidate:
    """A candidate whose conversion is a small file, and ncnn as if it were installed."""
    from bblab.latency.models import Model
    from bblab.latency.runtimes.ncnn import Ncnn

    file = tmp_path / "net.zip"
    file.write_bytes(b"net")
    monkeypatch.setattr("bblab.latency.models.converted", lambda net, runtime: Model(file, "sha", 3, 0.0))
    monkeypatch.setattr("bblab.latency.models.is_remembered", lambda net, runtime: True)
    monkeypatch.setattr(Ncnn, "version", lambda self: "1")
    return Candidate("a", "a", "deploy", (3, 8, 8), "a", lambda: None)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("flags", [(), ("--no-shell-v2",)])
def test_a_measurement_on_the_phone(make: Callable[..., Phone], flags: tuple[str, ...], net: Candidate) -> None:
    phone = make(*flags)
    told: list[str] = []
    (timing,) = measure(
        [net],
        net,
        device=acting(phone.device(cooldown_s=60)),
        runtime="ncnn",
        plan=Plan(processes=2, rounds=2),
        on_progress=lambda done, total, left, text: told.append(text),
    )
    assert (timing.processes, timing.rounds, timing.device) == (2, 2, f"adb:{phone.serial}")
    assert timing.warm.cpu_s == ((0.25,) * 6, (0.25,) * 6)
    assert timing.samples["cold"].cpu_s == ((0.25, 0.25), (0.25, 0.25))
    assert timing.conditions_before["android"]["model"] == "Loop 8"
    assert timing.conditions_after["thermal"]["status"] == 0
    # All four big cores, each time: the speedometer before each worker, and the worker.
    masks = [line.split()[0] for line in (phone.root / "state/taskset").read_text().splitlines()]
    assert set(masks) == {"f0"} and len(masks) == 1 + 2 * 2
    assert not any("cooling" in text for text in told)


def test_little_cores_are_another_device(phone: Phone) -> None:
    with acting(phone.device(cores="little")) as device:
        list(device.run(REQUEST, silence_s=20))
        assert device.name == f"adb:{phone.serial}, little cores"
    assert (phone.root / "state/taskset").read_text().splitlines()[-1].split()[0] == "f"


def test_a_phone_that_will_not_pin_is_said(phone: Phone) -> None:
    (phone.root / "system/bin/taskset").write_text("#!/bin/sh\necho 'taskset: Operation not permitted' >&2; exit 1\n")
    with acting(phone.device()) as device:
        assert list(device.run(REQUEST, silence_s=20))[-1] == wire.End(2)
        (note,) = devices.notes(device)
    assert "cannot pin to the cores f0 (taskset: Operation not permitted)" in note


def test_garbage_is_passed_over_and_counted(phone: Phone) -> None:
    noise = "printf 'WARNING: linker \\200\\377\\n'; echo 'D/libEGL: loaded'"
    with acting(phone.device(), noise) as device:
        # hello, ready, a speed and four calls (one cold, three warm) in each of two rounds, a last speed, end
        assert len(list(device.run(REQUEST, silence_s=20))) == 2 + 2 * 5 + 2
        assert devices.notes(device) == ("4 line(s) on the workers' output were not bblab's and were passed over",)


def test_a_crash_shows_the_phones_last_words(phone: Phone) -> None:
    with (
        acting(phone.device(), "echo 'Segmentation fault' >&2; kill -11 $$") as device,
        pytest.raises(RunError, match="was killed by SIGSEGV") as failed,
    ):
        list(device.run(REQUEST, silence_s=20))
    assert "| Segmentation fault" in str(failed.value)


def is_running(pid: int) -> bool:
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(status) and not status.startswith("Z")


def gone(pid: int) -> bool:
    end = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not is_running(pid)


HANG = 'sh -c "trap : HUP; while :; do sleep 1; done" & echo "$$ $!" > {path}; trap : HUP; while :; do sleep 1; done'


def test_a_hanging_worker_is_ended_with_its_children(phone: Phone, tmp_path: Path) -> None:
    file = tmp_path / "pids"
    with acting(phone.device(), HANG.format(path=file)) as device:
        with pytest.raises(RunError, match="said nothing for 1 s"):
            list(device.run(REQUEST, silence_s=1))
        assert all(gone(int(pid)) for pid in file.read_text().split())


def test_ctrl_c_ends_the_worker_on_the_phone(phone: Phone, tmp_path: Path) -> None:
    file = tmp_path / "pids"
    with acting(phone.device(), HANG.format(path=file)) as device:
        stream = device.run(REQUEST, silence_s=20)
        while not isinstance(next(stream), wire.Speed):
            pass
        while not (file.exists() and file.read_text().strip()):
            time.sleep(0.02)
        stream.close()
        assert all(gone(int(pid)) for pid in file.read_text().split())


def test_a_pulled_cable_keeps_what_was_measured_and_is_tidied_at_the_next_connection(
    phone: Phone, tmp_path: Path, net: Candidate
) -> None:
    """The second worker hangs and the cable is pulled: it goes on on the phone, until we come back."""
    mark, pids = tmp_path / "mark", tmp_path / "pids"
    act = f"[ $r = 1 ] && {{ [ -e {mark} ] && {{ {HANG.format(path=pids)}; }}; touch {mark}; }}; :"
    device = acting(phone.device(), act)

    def pull() -> None:
        while not (pids.exists() and pids.read_text().strip()):
            time.sleep(0.05)
        phone.unplug()

    puller = threading.Thread(target=pull, daemon=True)
    puller.start()
    with pytest.raises(Broken, match=r"connection to adb:127\S+ broke") as broken:
        measure([net], net, device=device, runtime="ncnn", plan=Plan(processes=3, rounds=2))
    puller.join()
    (kept,) = broken.value.partial
    assert (kept.processes, kept.rounds) == (1, 2)
    assert any("after 1 process" in note for note in kept.notes)
    assert kept.conditions_after["absent"] == ["everything: the device did not answer"]
    assert len(phone.left()) == 1
    running = [int(pid) for pid in pids.read_text().split()]
    assert all(map(is_running, running))
    phone.plug()
    with phone.device() as again:
        assert len(phone.left()) == 1 and again.folder.endswith(phone.left()[0])
        assert any("cleared 1 folder" in note for note in devices.notes(again))
        assert all(map(gone, running))


def test_a_killed_bblab_leaves_nothing_after_the_next_connection(phone: Phone) -> None:
    code = (
        "import os, sys; from bblab.latency import devices; "
        f"d = devices.find('adb:{phone.serial}'); d.__enter__(); print('in', flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "in\n" and done.returncode == -signal.SIGKILL
    assert len(phone.left()) == 1
    with phone.device():
        assert len(phone.left()) == 1
    assert phone.left() == []


def test_a_phone_runs_programs_only_and_says_what_to_build(phone: Phone, cold: None) -> None:
    with phone.device() as device:
        with pytest.raises(BblabError, match="cannot run 'ort'") as told:
            devices.prepare(device, "ort")
        assert "--runtime ncnn or ncnn-static" in told.value.hint
        with pytest.raises(BblabError, match="needs bblab's runner for aarch64") as told:
            devices.prepare(device, "ncnn")
        assert "bblab runner build aarch64" in told.value.hint


# Programs of the user's own -------------------------------------------------------------------------------------


@pytest.fixture
def benchncnn(tmp_path: Path) -> Path:
    """A program in the phone's shell that prints as benchncnn does: to standard error, its arguments first."""
    path = tmp_path / "benchncnn"
    path.write_text(
        '#!/bin/sh\necho "loop_count = $1" >&2\ntest -s "${6#param=}" || exit 3\n'
        'echo "$7  min =  8.84  max =  9.89  avg =  8.97" >&2\n'
    )
    return path


def test_a_program_of_the_users_own_is_run_and_marked(
    phone: Phone, benchncnn: Path, lab: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from bblab.lab import Lab

    model = tmp_path / "net.param"
    model.write_text("7767517\n")
    monkeypatch.setattr("bblab.lab.devices._tool_model", lambda lab, name, *_: (name, model, (3, 255, 255), "id"))
    mine = Lab(lab)
    mine.add_device("loop", f"adb:{phone.serial}", {"benchncnn": str(benchncnn), "cores": "little"})
    rows = mine.time_with_tool("loop", "benchncnn", ["a", "b"], calls=4, turns=2)
    assert [row["model"] for row in rows] == ["a", "b"] and rows[0]["device"] == "loop, little cores"
    assert rows[0]["wall_avg_s"] == pytest.approx(0.00897) and rows[0]["calls"] == 8
    assert rows[0]["follows_protocol"] is False and "not bblab's" in rows[0]["caveat"]
    with mine.notebook() as store:
        assert store.get(rows[0]["run_id"]).kind == "tool_latency"
    assert (phone.root / "state/taskset").read_text().splitlines()[-1].startswith("f ./benchncnn 4 1 0 -1 0 param=")
    with pytest.raises(BblabError, match="loop has no benchmark_model") as told:
        mine.time_with_tool("loop", "benchmark_model", ["a"])
    assert "--benchmark-model FILE" in told.value.hint


def test_a_program_of_the_users_own_that_fails_or_hangs_is_told(phone: Phone, benchncnn: Path, tmp_path: Path) -> None:
    model = tmp_path / "net.param"
    model.write_text("")
    with phone.device() as device, pytest.raises(RunError, match=r"benchncnn on adb:.* exited with code 3"):
        tools.run(device, "benchncnn", benchncnn, model, (3, 8, 8))
    benchncnn.write_text("#!/bin/sh\necho $$ > state/pid; sleep 300\n".replace("state", str(phone.root / "state")))
    with phone.device() as device, pytest.raises(remote.Lost, match="did not answer within 1 s"):
        tools.run(device, "benchncnn", benchncnn, model, (3, 8, 8), limit_s=1)
    assert gone(int((phone.root / "state/pid").read_text()))


# An aarch64 program under qemu ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static aarch64 worker, as bblab's own runner is."""
    if QEMU is None or GCC is None:
        pytest.skip("needs qemu-aarch64-static and aarch64-linux-gnu-gcc: apt-get install qemu-user-static ...")
    path = tmp_path_factory.mktemp("program") / "runner"
    done = subprocess.run([GCC, "-O2", "-static", "-o", str(path), str(HERE / "wire_runner.c")], capture_output=True)
    if done.returncode != 0:
        pytest.skip("the cross compiler has no libc: apt-get install libc6-dev-arm64-cross")
    return path


def test_an_aarch64_program_is_pushed_and_measured(
    phone: Phone, net: Candidate, program: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(remote, "static_program", lambda runtime, machine: (str(program),) * (machine == "aarch64"))
    monkeypatch.setenv("BBLAB_CACHE", str(tmp_path / "cache"))
    device = phone.device(cooldown_s=0)
    (timing,) = measure([net], net, device=device, runtime="ncnn", plan=Plan(processes=2, rounds=3, warmups=0))
    assert timing.processes == 2 and timing.speedometer_name == "wire-runner"
    assert all(t > 0 for process in timing.warm.cpu_s for t in process)
    assert any("not been verified on a real phone" in note for note in timing.notes)


def test_a_runner_of_another_protocol_is_refused_in_words(
    phone: Phone, net: Candidate, program: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # as a runner that the user names with BBLAB_RUNNER_AARCH64 and built a year ago
    old = tmp_path / "old"
    assert GCC is not None
    text = (HERE / "wire_runner.c").read_text().replace('\\"wire\\": 2, \\"protocol\\": 2, ', '\\"wire\\": 1, ')
    (tmp_path / "old.c").write_text(text)
    subprocess.run([GCC, "-O2", "-static", "-o", str(old), str(tmp_path / "old.c")], check=True)
    monkeypatch.setattr(remote, "static_program", lambda runtime, machine: (str(old),))
    with pytest.raises(RunError, match=r"measures by protocol 1 .wire 1., this bblab by protocol 2") as refused:
        measure([net], net, device=phone.device(cooldown_s=0), runtime="ncnn", plan=Plan(processes=2, rounds=3))
    assert "bblab runner build" in refused.value.hint


def test_the_cold_value_is_remembered(
    phone: Phone, program: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(remote, "static_program", lambda runtime, machine: (str(program),))
    monkeypatch.setenv("BBLAB_CACHE", str(tmp_path / "cache"))
    with phone.device(cooldown_s=0.5) as device:
        devices.settle(device, "ncnn", 1, lambda text: None)
    (file,) = (tmp_path / "cache" / "devices").iterdir()
    known = json.loads(file.read_text())
    assert known["device"] == f"adb:{phone.serial}, big cores" and known["speedometer"] == "wire-runner"
    assert 0 < known["cold_s"] < 10


def test_a_program_that_does_not_start_is_told_before_anything_is_converted(
    phone: Phone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "runner"
    broken.write_text("#!/bin/sh\necho 'CANNOT LINK EXECUTABLE' >&2; exit 1\n")
    monkeypatch.setattr(remote, "static_program", lambda runtime, machine: (str(broken),))
    with phone.device() as device, pytest.raises(RunError, match=r"does not run runner, .*CANNOT LINK"):
        devices.prepare(device, "ncnn")


@pytest.mark.parametrize(
    ("content", "said"), [(b"H", "said nothing for 2 s"), (b"C", "was killed by SIGABRT"), (b"G", "")]
)
def test_a_program_that_hangs_crashes_or_chatters(
    phone: Phone, program: Path, content: bytes, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(remote, "static_program", lambda runtime, machine: (str(program),))
    model = tmp_path / "model"
    model.write_bytes(content)
    with phone.device() as device:
        request = wire.Request("ncnn", 1, 0, 0, (wire.ModelFile("a", device.send(model), (1, 3, 8, 8)),), ((0,), (0,)))
        if said:
            with pytest.raises(RunError, match=said):
                list(device.run(request, silence_s=2))
        else:
            assert list(device.run(request, silence_s=20))[-1] == wire.End(2)
            assert devices.notes(device)[-1].startswith("2 line(s)")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_specs_are_ranked_on_the_phone_by_the_real_runner(
    phone: Phone, bblab: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the command: converted by pnnx, pushed, run by the aarch64 runner under qemu, stored, compared."""
    pytest.importorskip("pnnx", reason="pnnx is not installed")
    from bblab.latency import runner

    if QEMU is None:
        pytest.skip("needs qemu-aarch64-static: apt-get install qemu-user-static")
    with pytest.MonkeyPatch.context() as patch:
        if keep := os.environ.get("BBLAB_TEST_RUNNERS"):
            patch.setenv("BBLAB_CACHE", keep)
        try:
            path = runner.built("aarch64") or runner.build("aarch64")
        except BblabError as error:
            if "not installed" in error.message or "no source archive" in error.message:
                pytest.skip(error.message)
            raise
    monkeypatch.setenv("BBLAB_RUNNER_AARCH64", str(path))
    assert bblab("devices", "add", "loop", f"adb:{phone.serial}", "--cooldown", "2").code == 0
    listed = json.loads(bblab("devices", "--json", "-").out)["devices"]
    (seen,) = (d for d in listed if d["name"] == "loop")
    assert seen["state"] == "ready" and {"ncnn", "ncnn-static-fp16"} <= set(seen["runtimes"])
    assert "4 at 2.85 GHz + 4 at 1.80 GHz; measures on 4,5,6,7" in seen["cores"]
    ran = bblab(
        *("bench", "mobilenetv3_small@s16", "nanotrack", "--device", "loop", "--size", 64, "--budget", 2),
        *("--runtime", "ncnn,ncnn-static-fp16", "--json", "-"),
    )
    rows = json.loads(ran.out)["latency"]
    assert ran.code == 0 and {row["device"] for row in rows} == {"loop"}
    assert {(row["runtime"], row["precision"]) for row in rows} == {
        ("ncnn", "float32"),
        ("ncnn-static-fp16", "float16"),
    }
    for row in rows:
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"] and row["conversion_rel_error"] < 0.02
        assert row["conditions"]["after"]["android"]["model"] == "Loop 8"
        assert any("not been verified on a real phone" in note for note in row["notes"])
    assert "speedometer_s" in rows[0] and phone.left() == []
