"""Several ranks are one process: real processes of torchrun, on the CPU, with gloo.

This file is also what they run: ``python -m test_ranks WHAT FOLDER``.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from nofe_lab import Experiment, InvalidInput
from nofe_lab.data.preprocess import ImageNetwork, Preprocess
from nofe_lab.ranks import check_ranks, own_device, own_rank
from nofe_lab.runs import Run, RunStore
from nofe_lab.stages.launch import _pickled
from nofe_lab.training.events import EpochDone, Event, MapUpdated, StageBegun, StageEnded, StepDone
from nofe_lab.training.interrupts import Interrupted, ask_to_stop
from nofe_lab.training.tasks import TrainingDiverged

pytestmark = pytest.mark.xdist_group("ranks")


class Dropping(nn.Module):
    """A CNN that draws: of whole maps, and of single values."""

    def __init__(self, norm: Callable[[int], nn.Module] = lambda n: nn.GroupNorm(2, n)) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), norm(8), nn.ReLU())
        self.drop = nn.Dropout2d(0.2)
        self.tail = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), norm(16), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.end = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.pool(self.tail(self.drop(self.trunk(x)))))


class Normed(Dropping):
    """The same with batch normalisation, and weights that no output depends on."""

    def __init__(self) -> None:
        super().__init__(nn.BatchNorm2d)
        self.idle = nn.Linear(3, 3)


def experiment(runs_dir: Path, **changes: Any) -> Experiment:
    small = {"K": 5, "epochs": 2, "batch_size": 30, "map_updates": 3, "precision": "fp32"}
    where = {"device": "cpu", "runs_dir": str(runs_dir), "checkpoint_seconds": 0.0}
    return Experiment(**{"dataset": "glyphs:4", **small, **where, **changes})


def dropping(runs_dir: Path, network: Any = Dropping, **changes: Any) -> Experiment:
    """Batches that two ranks cannot share equally."""
    options = {"batch_size": 31, "affinity_from": "training", "epochs": 3, **changes}
    return experiment(runs_dir, backbone=network, split="drop", **options)


def compute_in_float64() -> None:
    """So that only another order of sums differs."""

    def run(self: ImageNetwork, network: Any, images: Tensor, drawn: Any, *more: Any) -> Any:
        x = self.preprocess(images, drawn).double()
        return network(x.contiguous(memory_format=torch.channels_last), *more)

    def make(self: Preprocess, mean: Tensor, scale: Tensor, *more: Any) -> None:
        usual(self, mean.float(), scale.float(), *more)

    usual = Preprocess.__init__
    torch.set_default_dtype(torch.float64)
    Preprocess.__init__ = make  # type: ignore[method-assign,assignment]
    ImageNetwork._run = run  # type: ignore[method-assign]


def work(what: str, folder: Path) -> None:
    """What each rank does, or one process."""
    torch.set_num_threads(1)
    if what == "equal":
        short = experiment(folder / "float32")
        short.run(short.base())
        compute_in_float64()
        whole = experiment(folder / "float64")
        whole.run(whole.nofe(), whole.gate())
        drawing = dropping(folder / "float64")
        drawing.run(drawing.nofe())
        return
    if what == "alone fails":  # on one rank alone
        if own_rank() == 1:
            loop = sys.modules["nofe_lab.training.loop"]
            loop.sgd = fail  # type: ignore[attr-defined]
        what = "long"
    found = dropping(folder, Normed, epochs=LONG[what])
    found.run(found.generalist())


LONG = {"long": 8, "endless": 2000}


def fail(*_: object) -> None:
    raise InvalidInput("this rank has no optimiser.")


def start(
    what: str, folder: Path, ranks: int = 2, restarts: int = 0, code: str = "", **options: Any
) -> subprocess.Popen[str]:
    """Do `work` in processes of torchrun; in one of its own for 1 rank, which may do `code`."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    torchrun += ["--max-restarts", str(restarts), "-m"]
    command = [sys.executable, "-m", *(torchrun if ranks > 1 else []), "test_ranks"]
    if code:
        command = [sys.executable, "-c", code]
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    env = {**os.environ, "PYTHONPATH": path}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*command, what, str(folder)], env=env, **pipes, **options)
    STARTED.append(process)
    return process


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def left() -> Iterator[None]:
    """Ends what a test that failed has left."""
    yield
    while STARTED:
        with STARTED.pop() as process:
            process.terminate()


def finished(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out, errors


def distance(one: Run, two: Run) -> float:
    """The largest difference of weights and of the histories' figures."""
    weights = two.weights()
    differences = [float((v - weights[name]).abs().max()) for name, v in one.weights().items()]
    histories = (run.history.drop(columns="seconds").to_numpy() for run in (one, two))
    return max(*differences, float(np.abs(np.subtract(*histories)).max()))


# --- two ranks are one process


@pytest.fixture(scope="module")
def one_and_two(
    filled_once: Callable[[str, Callable[[Path], None]], Path],
) -> tuple[Path, Path]:
    """Folders of the same runs, made by one process and by two ranks."""

    def fill(folder: Path) -> None:
        for ranks in (1, 2):
            finished(start("equal", folder / str(ranks), ranks))

    folder = filled_once("ranks", fill)
    return folder / "1", folder / "2"


def pairs(folders: tuple[Path, Path], precision: str) -> dict[str, tuple[Run, Run]]:
    one, two = (RunStore(folder / precision) for folder in folders)
    found = {}
    for run in one:
        other = two.find(run.id)
        assert other is not None
        found[run.path.name] = run, other
    return found


def test_twenty_steps_of_two_ranks_are_those_of_one_process(
    one_and_two: tuple[Path, Path],
) -> None:
    ((one, two),) = pairs(one_and_two, "float32").values()
    assert len(one.history) * 10 == 20
    assert distance(one, two) < 1e-4
    assert (one.provenance["ranks"], two.provenance["ranks"]) == (1, 2)


def test_whole_stages_of_two_ranks_are_those_of_one_process(
    one_and_two: tuple[Path, Path],
) -> None:
    """Also with dropout, batches of odd size, and an affinity that is counted while training."""
    found = pairs(one_and_two, "float64")
    kinds = sorted(name.split("-")[0] for name in found)
    assert kinds == ["gate", "generalist", "generalist", "nofe", "nofe"]
    for name, (one, two) in found.items():
        assert next(iter(one.weights().values())).dtype == torch.float64
        assert distance(one, two) < 1e-8, name
        if name.startswith("generalist"):
            maps = one.table("map_history")
            assert maps.groupby("update")["specialty"].apply(tuple).nunique() == 4
            assert maps.equals(two.table("map_history"))
        if one.has("specialties.json"):
            assert one.text("specialties.json") == two.text("specialties.json")
    print({name: distance(*pair) for name, pair in found.items()})


# --- killed, stopped, refused


def wait_until(found: Callable[[], object], seconds: float = 120) -> None:
    for _ in range(int(seconds / 0.02)):
        if found():
            return
        time.sleep(0.02)
    pytest.fail(f"waited for {seconds} s in vain")


def ranks_of(process: subprocess.Popen[str]) -> dict[int, int]:
    """The process of each rank."""
    found = {}
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{child}/environ").read_text()
            if (number := re.search(r"(?:^|\0)RANK=(\d+)", text)) is not None:
                found[int(number[1])] = int(child)
    return found


def step_of(folder: Path) -> int:
    steps = folder.glob("*.unfinished/step-*.safetensors")
    return max((int(path.stem.removeprefix("step-")) for path in steps), default=0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_rank_that_is_killed_is_started_again_and_the_result_is_the_same(tmp_path: Path) -> None:
    from tests.integration.test_survival import bits  # the ranks import this file alone

    finished(start("long", tmp_path / "undisturbed"))
    process = start("long", tmp_path / "killed", restarts=3)
    for number, step in ((1, 5), (0, 20), (1, 40)):
        wait_until(lambda step=step: step_of(tmp_path / "killed") >= step)  # type: ignore[misc]
        os.kill(ranks_of(process)[number], signal.SIGKILL)
    finished(process)
    (one,), (two,) = RunStore(tmp_path / "undisturbed"), RunStore(tmp_path / "killed")
    assert bits(one) == bits(two)
    assert two.provenance["interruptions"] == 3
    assert one.history["train_loss"].iloc[-1] < one.history["train_loss"].iloc[0]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ranks_stop_after_the_same_step_and_another_number_goes_on(
    number: signal.Signals, tmp_path: Path
) -> None:
    process = start("endless", tmp_path, start_new_session=True)
    wait_until(lambda: step_of(tmp_path) >= 3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    step = step_of(tmp_path)
    if number == signal.SIGINT:
        assert f"stopped after step {step} of" in errors
    again = start("endless", tmp_path, ranks=1)
    wait_until(lambda: step_of(tmp_path) > step)
    again.send_signal(signal.SIGINT)
    out, errors = again.communicate(timeout=60)
    assert f"resumes from step {step} of" in out
    assert re.search(r"begun under .* ranks 2.*; goes on under .* ranks 1", out)
    back = start("endless", tmp_path, ranks=2, start_new_session=True)
    step = step_of(tmp_path)
    wait_until(lambda: step_of(tmp_path) > step)
    back.send_signal(number)
    out, _ = back.communicate(timeout=60)
    assert f"resumes from step {step} of" in out


@pytest.mark.slow
def test_ranks_end_together_when_one_fails(tmp_path: Path) -> None:
    process = start("alone fails", tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.count("InvalidInput: this rank has no optimiser.") == 1
    assert "RankLost: rank 0 of 2 has lost another rank" in errors or "SIGTERM" in errors
    assert not list(tmp_path.glob("*.unfinished/*"))


def test_what_is_refused_on_all_ranks_is_said_once(tmp_path: Path) -> None:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "nofe_lab"]
    words = ["train", "glyphs", "--K", "1", "--runs-dir", str(tmp_path / "runs")]
    command = [sys.executable, "-m", *torchrun, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("K must be a whole number of at least 2; got 1.") == 1
    assert "nofe_lab" not in done.stdout


@pytest.mark.parametrize("device", ["mps", "cuda:1", "meta"])
def test_ranks_need_a_device_each_or_the_cpu(device: str) -> None:
    with pytest.raises(InvalidInput, match=f"must be cpu or cuda for 2 ranks; got '{device}'"):
        check_ranks(torch.device(device), 2)


def test_each_rank_has_a_gpu_of_its_own_or_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    check_ranks(torch.device("cuda"), 2)
    with pytest.raises(InvalidInput, match="3 ranks need a GPU each, and NCCL, which has 2 here"):
        check_ranks(torch.device("cuda"), 3)
    told = {"TORCHELASTIC_RUN_ID": "1", "RANK": "1", "WORLD_SIZE": "2"}
    for name, value in {**told, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert own_device(torch.device("cuda")) == torch.device("cuda:1")
    assert own_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(InvalidInput, match="ranks must be 1 where torchrun has started 2 already"):
        Experiment("glyphs:4", device="cpu", ranks=2)


# --- from a notebook


def test_a_notebook_reads_back_what_its_ranks_have_trained(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped by hand, gone on with, and then only loaded."""
    events: list[Event] = []

    def watch(event: Event) -> None:
        events.append(event)
        if isinstance(event, StepDone) and event.step == 7:
            ask_to_stop()

    found = dropping(runs_dir, Normed, ranks=2)
    with pytest.raises(Interrupted, match=r"stopped after step \d+ of 27; all of it is kept"):
        found.run(found.generalist(), watch=watch)
    assert threading.current_thread() is threading.main_thread()
    assert isinstance(events[0], StageBegun)
    assert events[-1] == StageEnded(events[0].title, finished=False)
    stopped = step_of(runs_dir)
    assert 7 <= stopped < 27
    events.clear()
    (run,) = found.run(found.generalist(), watch=events.append)
    out = capsys.readouterr().out
    assert f"resumes from step {stopped} of 27" in out
    assert "To train, on cpu in fp32, by 2 ranks:" in out
    assert out.count("epoch 3/3: loss") == 1
    assert run.provenance["ranks"] == 2
    assert run.provenance["interruptions"] == 1
    assert [event.epoch for event in events if isinstance(event, EpochDone)][-1] == 3
    maps = [event.specialty_of for event in events if isinstance(event, MapUpdated)]
    last = run.table("map_history").query("update == 3")["specialty"]
    assert maps[-1] == tuple(last)
    assert events[-1] == StageEnded(events[0].title, finished=True)
    assert found.run(found.generalist()) == [run]
    assert "loaded" in capsys.readouterr().out


@pytest.mark.slow
def test_ranks_stop_when_the_notebook_is_killed(runs_dir: Path) -> None:
    code = f"""
from pathlib import Path
from test_ranks import Normed, dropping
found = dropping(Path({str(runs_dir)!r}), Normed, ranks=2, epochs=2000)
found.run(found.base())
"""
    notebook = start("", runs_dir, 1, code=code)
    wait_until(lambda: step_of(runs_dir) >= 2)
    notebook.kill()
    notebook.communicate()
    stage = dropping(runs_dir, Normed, epochs=2000).base()
    with RunStore(runs_dir).training(stage.run_name, stage.id, lambda _: None):  # its lock is free
        assert step_of(runs_dir) < stage.steps


def test_a_network_of_a_notebook_s_cell_is_refused_before_any_work(runs_dir: Path) -> None:
    cell: dict[str, Any] = {"__name__": "__main__", "Dropping": Dropping}
    exec("class Mine(Dropping):\n    pass", cell)
    found = dropping(runs_dir, cell["Mine"], ranks=2)
    with pytest.raises(InvalidInput, match=r"cannot import 'Mine' from a notebook or a script"):
        found.run(found.base())
    local = dropping(runs_dir, type("Local", (Dropping,), {}), ranks=2)
    with pytest.raises(InvalidInput, match=r"cannot be handed \(.*Local.*\): accepted is ranks=1"):
        local.run(local.base())
    assert not list(runs_dir.glob("*.unfinished"))


@pytest.mark.parametrize("network", ["alexnet_quick", "resnet18", Normed])
def test_a_stage_is_handed_to_another_process(network: Any, runs_dir: Path, tmp_path: Path) -> None:
    """With images that workers of this process have decoded."""
    for label in ("black", "white"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for n in range(10):
            picture = Image.new("RGB", (32, 32), (200 * (label == "white") + n,) * 3)
            picture.save(tmp_path / "pictures" / label / f"{n}.png")
    files = {"streaming": True, "loader_workers": 1, "image_size": 32, "batch_size": 4, "K": 2}
    found = experiment(runs_dir, backbone=network, dataset=f"folder:{tmp_path}/pictures", **files)
    stage = found.nofe()
    train = stage.dataset.train
    pixels = list(train.parts(4))
    ((again,),) = pickle.loads(_pickled([stage]))
    assert again.id == stage.id
    assert all(map(torch.equal, again.dataset.train.parts(4), pixels))
    assert str(again.untrained_network()) == str(stage.untrained_network())


def test_an_error_of_the_ranks_is_the_notebook_s(runs_dir: Path) -> None:
    found = dropping(runs_dir, Normed, ranks=2, learning_rate=1e9)
    with pytest.raises(TrainingDiverged, match=r"a learning_rate below 1e\+09 or a batch_size"):
        found.run(found.base())
    assert not list(runs_dir.glob("*.unfinished"))


def test_ranks_without_an_image_of_each_batch_are_refused(runs_dir: Path) -> None:
    found = dropping(runs_dir, ranks=32)
    with pytest.raises(InvalidInput, match="at most the 31 images of a batch of base CNN"):
        found.run(found.base())


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]))
