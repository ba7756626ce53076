"""Checkpoints: whole or not at all, damage noticed, published names outside and clean names inside."""

import os
import signal
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from jukebox import files
from jukebox.errors import CheckpointError, OutOfSpace, WriteFailed
from jukebox.interop.published import Entry, prior_table, vqvae_table
from jukebox.models import checkpoint, restricted

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden" / "jukebox"
FAULT_POINTS = [
    "checkpoint.before_write",
    "publish.before_write",
    "publish.before_fsync",
    "publish.before_replace",
    "publish.after_replace",
    "checkpoint.between_step_and_latest",
    "checkpoint.while_pruning",
]


def tables(hps: dict) -> tuple[list[Entry], list[Entry]]:
    h = SimpleNamespace(**hps, labelled=hps["labels"] and bool(hps["y_bins"]), lyrics=False)
    return vqvae_table(h), prior_table(h, h, h, h, h)


def net_of(table: list[Entry], *, reverse: bool = False, device: str = "cpu") -> nn.Module:
    """A module with our names and nothing else, its parameters made in another order if asked."""
    net = nn.Module()
    for entry in reversed(table) if reverse else table:
        *folders, leaf = entry.ours.split(".")
        part = net
        for name in folders:
            if not hasattr(part, name):
                part.add_module(name, nn.Module())
            part = part.get_submodule(name)
        if entry.tied_to and not reverse:
            part.register_parameter(leaf, net.get_parameter(entry.tied_to))
        elif entry.parameter:
            part.register_parameter(leaf, nn.Parameter(torch.zeros(entry.shape, device=device)))
        elif not entry.tied_to:
            part.register_buffer(leaf, torch.zeros(entry.shape, device=device))
    return net


@pytest.fixture
def table() -> list[Entry]:
    return [
        Entry("a.w", "first.weight", (2, 3), half_ok=True),
        Entry("a.b", "first.bias", (3,)),
        Entry("k", "codebooks.0.vectors", (4, 2), parameter=False),
        Entry("emb", "emb.weight", (5, 2), aliases=("old.emb",)),
        Entry("out", "out.weight", (5, 2), parameter=False, tied_to="emb.weight"),
    ]


def state(table: list[Entry], seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    made = {e.published: torch.randn(e.shape, generator=random) for e in table}
    return {e.published: made["emb"] if e.tied_to else made[e.published] for e in table}


def write(folder: Path, step: int, table: list[Entry], **changes) -> Path:
    values = {"hps": {"downs_t": (3, 2), "name": "x"}, "model": state(table, step), "opt": None, "extra": {"n": step}}
    return checkpoint.write(folder, step, **(values | changes))


# ----------------------------------------------------------------------------------------------- files of others, ours


@pytest.mark.parametrize("name", ["ckpt_vqvae", "ckpt_prior", "ckpt_vqvae_module", "ckpt_prior_module"])
@pytest.mark.parametrize("legacy", [False, True])
def test_published_files_load_exactly(tmp_path, name, legacy):
    path = GOLDEN / f"{name}.pth.tar"
    tree = torch.load(path, weights_only=True)
    if legacy:
        path = tmp_path / "legacy.pth.tar"
        torch.save(tree, path, _use_new_zipfile_serialization=False)
    found = checkpoint.read(path)
    assert found.step == 3 and found.hps["levels"] == 2 and found.extra == {}
    raw = {key.removeprefix("module."): tensor for key, tensor in tree["model"].items()}
    assert list(found.model) == list(raw)

    table = tables(found.hps)[1 if "prior" in name else 0]
    for net in (net_of(table), net_of(table, reverse=True), net_of(table, device="meta")):
        checkpoint.load_into(net, found.model, table)
        assert all(torch.equal(tensor, raw[key]) for key, tensor in checkpoint.published_state(net, table).items())
        assert list(checkpoint.published_state(net, table)) == list(raw)


def test_published_optimiser_state_changes_its_order_and_back():
    found = checkpoint.read(GOLDEN / "ckpt_prior.pth.tar")
    table = tables(found.hps)[1]
    net = net_of(table, reverse=True)
    names = [name for name, _ in net.named_parameters()]
    ours = checkpoint.opt_from_published(found.opt, names, table)
    torch.optim.Adam(net.parameters()).load_state_dict(
        ours | {"param_groups": [{**ours["param_groups"][0], "amsgrad": False}]}
    )
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert [tuple(ours["state"][i]["exp_avg"].shape) for i in range(len(names))] == [shapes[name] for name in names]
    back = checkpoint.opt_to_published(ours, names, table)
    assert back["param_groups"] == found.opt["param_groups"] and list(back["state"]) == list(found.opt["state"])
    for index, entry in found.opt["state"].items():
        assert all(torch.equal(torch.as_tensor(back["state"][index][k]), torch.as_tensor(v)) for k, v in entry.items())


def test_optimiser_state_of_another_net_is_refused(table):
    opt = {"state": {}, "param_groups": [{"params": [0, 1]}]}
    with pytest.raises(CheckpointError, match="counts 2 parameters, this net has 3"):
        checkpoint.opt_from_published(opt, ["a", "b", "c"], table)


def test_what_is_written_is_read(tmp_path, table):
    extra = {
        "ema": {"x": torch.ones(2, dtype=torch.float16)},
        "schedule": {"step": 7, "scale": 2.0**16},
        "list": [1, (2, None)],
    }
    opt = {"state": {0: {"step": 7, "exp_avg": torch.ones(2, 3)}}, "param_groups": [{"lr": 1e-3, "params": [0, 1, 2]}]}
    path = write(tmp_path, 7, table, opt=opt, extra=extra, hps={"downs_t": (3, 2), "none": None, "é": "ü\n"})
    found = checkpoint.read(path)
    assert (found.step, found.hps, found.path) == (7, {"downs_t": (3, 2), "none": None, "é": "ü\n"}, path)
    assert found.extra["schedule"] == extra["schedule"] and found.extra["list"] == extra["list"]
    assert torch.equal(found.extra["ema"]["x"], extra["ema"]["x"]) and found.extra["ema"]["x"].dtype == torch.float16
    assert found.opt["param_groups"] == opt["param_groups"] and torch.equal(
        found.opt["state"][0]["exp_avg"], torch.ones(2, 3)
    )
    assert list(found.model) == [e.published for e in table]
    raw = torch.load(path, weights_only=True)  # anyone can read it
    assert set(raw) == {"hps", "model", "opt", "step", "jukebox"}
    assert raw["model"]["emb"].data_ptr() == raw["model"]["out"].data_ptr()  # tied on disk
    sha, name = (tmp_path / f"{path.name}.sha256").read_text().split()
    assert (sha, name) == (files.digest_file(path), path.name)


def test_views_are_written_without_what_they_look_at(tmp_path, table):
    big = torch.zeros(1_000_000)
    path = write(
        tmp_path,
        1,
        table,
        extra={"none": torch.zeros(0, 2), "few": big[:3], "turned": torch.arange(6.0).reshape(2, 3).t()},
    )
    assert path.stat().st_size < 50_000
    assert torch.equal(checkpoint.read(path).extra["turned"], torch.arange(6.0).reshape(2, 3).t())


def test_weights_alone_and_the_hint(tmp_path, table):
    torch.save(OrderedDict(state(table)), tmp_path / "w.pth.tar")
    found = checkpoint.read(tmp_path / "w.pth.tar", hps_hint={"levels": 3})
    assert (found.step, found.opt, found.hps) == (0, None, {"levels": 3}) and set(found.model) == set(state(table))


def test_safetensors_are_read(tmp_path, table):
    from safetensors.torch import save_file

    tensors = {name: t.clone() for name, t in state(table).items()}
    save_file(tensors, tmp_path / "w.safetensors")
    assert all(torch.equal(t, tensors[name]) for name, t in checkpoint.read(tmp_path / "w.safetensors").model.items())
    whole = (tmp_path / "w.safetensors").read_bytes()
    for broken in (whole[:-5], b"\xff\xff\xff\x7f\0\0\0\0{" + whole[9:], whole[:8] + b"{" * (len(whole) - 8)):
        (tmp_path / "w.safetensors").write_bytes(broken)
        with pytest.raises(CheckpointError, match="w.safetensors"):
            checkpoint.read(tmp_path / "w.safetensors")


# --------------------------------------------------------------------------------------------------- a folder of steps


def test_latest_and_pruning(tmp_path, table):
    for step in (5, 10, 20):
        write(tmp_path, step, table, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint_latest.pth.tar",
        *(f"checkpoint_step_{n}.pth.tar{end}" for n in (10, 20) for end in ("", ".sha256")),
    ]
    assert (
        os.stat(tmp_path / "checkpoint_latest.pth.tar").st_ino
        == os.stat(tmp_path / "checkpoint_step_20.pth.tar").st_ino
    )
    assert checkpoint.read(tmp_path).step == 20 and checkpoint.read(tmp_path / "checkpoint_latest.pth.tar").step == 20


def test_no_hard_links(tmp_path, table, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *a, **k: (_ for _ in ()).throw(OSError("no links here")))
    write(tmp_path, 5, table)
    assert checkpoint.read(tmp_path / "checkpoint_latest.pth.tar").step == 5


def flip(path: Path, value: torch.Tensor) -> None:
    """One bit of a tensor, where it stands in the file."""
    data = bytearray(path.read_bytes())
    data[data.index(value.contiguous().numpy().tobytes()) + 1] ^= 4
    path.unlink()  # not in place: `latest` may be the same file
    path.write_bytes(data)


def test_a_flipped_bit_is_named_and_the_one_before_taken(tmp_path, table, caplog):
    write(tmp_path, 5, table)
    path = write(tmp_path, 10, table)
    flip(path, state(table, 10)["a.w"])
    with pytest.raises(CheckpointError, match=r"damaged at model/a\.w: expected CRC-32 \w+, found"):
        checkpoint.read(path)
    assert checkpoint.latest_valid(tmp_path).name == "checkpoint_step_5.pth.tar"
    assert "model/a.w" in caplog.text and "falling back" in caplog.text
    write(tmp_path, 7, table, keep=1)  # the run goes on behind the damaged file, which then goes
    assert [n for n, _ in checkpoint._step_files(tmp_path)] == [7]


def test_damage_outside_the_tensors(tmp_path, table):
    path = write(tmp_path, 5, table, hps={"name": "uniquename"})
    latest = tmp_path / "checkpoint_latest.pth.tar"
    data = path.read_bytes().replace(b"uniquename", b"uniquenAme")
    latest.unlink()
    latest.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"damaged at \(values\)"):
        checkpoint.read(latest)  # no manifest beside it
    path.unlink()
    path.write_bytes(write(tmp_path / "other", 5, table).read_bytes())
    with pytest.raises(CheckpointError, match="expected SHA-256"):
        checkpoint.read(path)


def test_nothing_left_to_fall_back_to(tmp_path, table):
    assert checkpoint.latest_valid(tmp_path) is None
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoint.read(tmp_path)
    for path in (write(tmp_path, 5, table), tmp_path / "checkpoint_latest.pth.tar"):
        path.unlink()
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints can be read"):
        checkpoint.latest_valid(tmp_path)


@pytest.mark.parametrize("point", FAULT_POINTS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_killed_at_any_point_one_good_checkpoint_remains(tmp_path, table, point, count):
    write(tmp_path, 5, table, keep=1)
    child = os.fork()
    if child == 0:
        os.environ["JUKEBOX_FAULT"] = f"{point}:{count}"
        write(tmp_path, 10, table, keep=1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if count == 1:
        assert os.WTERMSIG(status) == signal.SIGKILL
    found = checkpoint.read(tmp_path)
    assert found.step in (5, 10) and torch.equal(found.model["a.w"], state(table, found.step)["a.w"])
    assert checkpoint.read(tmp_path / "checkpoint_latest.pth.tar").step in (5, 10)
    files.remove_stale_temps(tmp_path)
    assert checkpoint.read(write(tmp_path, 10, table, keep=1)).step == 10  # the same step again, after the restart
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint_latest.pth.tar",
        "checkpoint_step_10.pth.tar",
        "checkpoint_step_10.pth.tar.sha256",
    ]


def test_a_full_disk_keeps_the_old_one(tmp_path, table, monkeypatch):
    write(tmp_path, 5, table)
    with monkeypatch.context() as patch:
        patch.setattr("jukebox.files.disk_free_bytes", lambda folder: 1000)
        with pytest.raises(OutOfSpace, match=r"checkpoint_step_10\.pth\.tar: needs .*--keep=1"):
            write(tmp_path, 10, table)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(WriteFailed, match="Input/output error"):
            write(tmp_path, 10, table)
    assert checkpoint.read(tmp_path).step == 5 and not list(tmp_path.glob(".tmp-*"))


# ------------------------------------------------------------------------------------------------ names, types, shapes


def test_types_follow_the_module_and_ties_hold(table):
    net = net_of(table)
    net.get_submodule("first").weight = nn.Parameter(torch.zeros(2, 3, dtype=torch.float16))
    published = {name: t.to(torch.float64) for name, t in state(table).items()}
    checkpoint.load_into(net, published, table)
    assert net.get_parameter("first.weight").dtype == torch.float16
    assert net.get_parameter("emb.weight").dtype == torch.float32
    assert net.get_parameter("out.weight") is net.get_parameter("emb.weight")
    assert len(published) == 5
    checkpoint.load_into(net, published, table, consume=True)
    assert not set(published) - {"out"}


def test_tied_tensors_stay_tied_from_the_meta_device(table):
    net = net_of(table, device="meta")
    checkpoint.load_into(net, {name: t for name, t in state(table).items() if name != "out"}, table)
    assert (
        net.get_parameter("out.weight") is net.get_parameter("emb.weight")
        and not net.get_parameter("emb.weight").is_meta
    )
    assert not net.get_buffer("codebooks.0.vectors").is_meta


def test_aliases_are_read(table):
    published = state(table)
    published["old.emb"] = published.pop("emb")
    net = net_of(table)
    checkpoint.load_into(net, published, table)
    assert torch.equal(net.get_parameter("emb.weight"), published["old.emb"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.w": None}, "x.pth.tar: belongs to another net: lacks 1 tensors, first a.w"),
        ({"more": torch.zeros(1)}, "has 1 that this net does not, first more"),
        ({"a.w": torch.zeros(3, 3)}, r"a.w has the shape \(3, 3\), this net needs \(2, 3\)\nwidth: 3 / 2"),
        ({"a.b": torch.zeros(3, dtype=torch.int64)}, "a.b is torch.int64"),
        ({"out": torch.zeros(5, 2)}, "out differs from emb"),
    ],
)
def test_another_net_is_refused_before_anything_is_copied(table, change, message):
    published = {name: t for name, t in (state(table) | change).items() if t is not None}
    net = net_of(table)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load_into(net, published, table, source="x.pth.tar", note="width: 3 / 2")
    assert not any(p.any() for p in net.parameters())


def test_own_state_is_what_has_no_published_name(table):
    net = net_of(table)
    net.get_submodule("codebooks.0").register_buffer("counts", torch.arange(4.0))
    net.get_submodule("codebooks.0").register_buffer("ready", torch.tensor(True))
    ours = checkpoint.own_state(net, table)
    assert set(ours) == {"codebooks.0.counts", "codebooks.0.ready"}
    kept = {name: t.clone() for name, t in ours.items()}
    net.get_buffer("codebooks.0.counts").zero_()
    checkpoint.load_own_state(net, kept)
    assert net.get_buffer("codebooks.0.counts").tolist() == [0, 1, 2, 3]
    with pytest.raises(CheckpointError, match="no place"):
        checkpoint.load_own_state(net, {"codebooks.0.counts": torch.zeros(5)})


def test_only_differing_keys_are_listed():
    old, now = {"width": 32, "downs_t": [3, 2], "sr": 44100, "gone": 1}, {"width": 64, "downs_t": (3, 2), "sr": 22050}
    assert checkpoint.differing_keys(old, now, ["width", "downs_t", "sr", "gone"]).splitlines() == [
        "  width: 32 in the checkpoint / 64 asked for",
        "  sr: 44100 in the checkpoint / 22050 asked for",
    ]


# ------------------------------------------------------------------------------------------------------- hostile files


class Payload:
    """Creates a file if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["top", "opt", "hps", "model"])
def test_a_payload_is_refused_and_does_not_run(tmp_path, table, legacy, place):
    ran = tmp_path / "ran"
    tree = {"model": state(table), "opt": {"state": {}}, "hps": {"a": 1}}
    (tree if place == "top" else tree[place])["evil"] = Payload(ran)
    path = tmp_path / "x.pth.tar"
    torch.save(tree, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"refused: contains os\.system; only tensors, numbers and text") as error:
        checkpoint.read(path)
    assert not ran.exists() and "weights_only" not in str(error.value) and error.value.__cause__ is None


def test_other_tricks_are_refused(tmp_path):
    import numpy as np

    class FromBytes:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (b"x",)

    path = tmp_path / "x.pth.tar"
    for value in (FromBytes(), np.float64(1), {1, 2}, b"bytes", 1j, torch.nn.Linear(1, 1)):
        torch.save({"model": {"a": torch.zeros(1)}, "x": value}, path)
        with pytest.raises(CheckpointError, match="only tensors, numbers and text") as error:
            checkpoint.read(path)
        assert "weights_only" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>404", "a text or web page ('<!DOCTYPE html>"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a text or web page"),
        (b"\x80\x04\x95abc", "neither a torch nor a safetensors file"),
        (b"\0" * 257 + b"ustar\0", "tar archive"),
        (b"PK\x03\x04 not really", "cut short or damaged"),
        (restricted.LEGACY_MAGIC, "damaged"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, content, message):
    path = tmp_path / "x.pth.tar"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        checkpoint.read(path)
    assert message in str(error.value) and str(path) in str(error.value) and "weights_only" not in str(error.value)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated(tmp_path, legacy, share):
    path = tmp_path / "x.pth.tar"
    torch.save({"model": {"a": torch.zeros(5000)}}, path, _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match="damaged|neither"):
        checkpoint.read(path)


def test_missing_and_misshapen(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.read(tmp_path / "absent.pth.tar")
    endless: list = []
    endless.append(endless)
    shared: list = [0]
    for _ in range(40):
        shared = [shared, shared]
    for tree, message in (
        ([1, 2], "holds a list"),
        ({"model": {}}, "no tensors"),
        ({"model": {"a": 1}}, "no tensors"),
        ({"step": 3}, "no tensors"),
        ({"model": {"a": endless}}, "nested too deeply or endlessly"),
    ):
        torch.save(tree, tmp_path / "x.pth.tar")
        with pytest.raises(CheckpointError, match=message):
            checkpoint.read(tmp_path / "x.pth.tar")


def test_a_bomb_of_shared_lists(tmp_path, monkeypatch):
    monkeypatch.setattr(restricted, "MAX_LEAVES", 10_000)
    shared: list = [0]
    for _ in range(40):
        shared = [shared, shared]
    torch.save({"model": {"a": torch.zeros(1)}, "x": shared}, tmp_path / "x.pth.tar")
    with pytest.raises(CheckpointError, match="nested too deeply or endlessly"):
        checkpoint.read(tmp_path / "x.pth.tar")


@pytest.mark.filterwarnings("ignore")
def test_odd_tensors_are_refused_by_name(tmp_path):
    for tensor, message in (
        (torch.zeros(3, 3).to_sparse(), "model/a is a torch.sparse_coo tensor"),
        (torch.zeros(3, 3).to_sparse_csr(), "model/a is a torch.sparse_csr tensor"),
        (torch.zeros(1).expand(10**6, 10**6), "model/a claims the shape"),
        (torch.empty(3, device="meta"), "model/a has a shape but no data"),
        (torch.zeros(2, dtype=torch.complex64), "model/a has the type torch.complex64"),
        (torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8), "model/a has the type torch.qint8"),
    ):
        torch.save({"model": {"a": tensor}}, tmp_path / "x.pth.tar")
        with pytest.raises(CheckpointError, match=message):
            checkpoint.read(tmp_path / "x.pth.tar")


def test_compressed_members_are_refused(tmp_path):
    torch.save({"model": {"a": torch.zeros(5000)}}, tmp_path / "x.pth.tar")
    with (
        zipfile.ZipFile(tmp_path / "x.pth.tar") as plain,
        zipfile.ZipFile(tmp_path / "y.pth.tar", "w", zipfile.ZIP_DEFLATED) as out,
    ):
        for member in plain.namelist():
            out.writestr(member, plain.read(member))
    with pytest.raises(CheckpointError, match="is compressed"):
        checkpoint.read(tmp_path / "y.pth.tar")
