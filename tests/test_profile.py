"""The profile of a training step counts all of its time, and each once."""

from types import SimpleNamespace

import pytest

from benchmarks import profile
from hcnn import bench
from hcnn.network import preset


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(
        profile,
        "preset",
        lambda name, **changes: preset("hcnn8-cifar10", **changes),
    )
    monkeypatch.setattr(profile, "BATCH", 1)
    monkeypatch.setattr(profile, "ROUNDS", 1)


def event(*names):
    """The first inside the second, and so on."""
    found = None
    for name in reversed(names):
        found = SimpleNamespace(name=name, cpu_parent=found)
    return found


@pytest.mark.parametrize(
    "names, group",
    [
        (["aten::mkldnn_convolution"], "convolutions"),
        (["aten::convolution_backward", "_BandedBackward"], "convolutions"),
        (["aten::mkldnn_convolution", "_MomentsBackward"], "moments"),
        (["aten::dot", "_StridedMoments"], "moments"),
        (["aten::elu_", "_Banded"], "elu"),
        (["aten::copy_", "aten::contiguous", "_Banded"], "copies"),
        (["aten::add_", "_BandedBackward"], "sums"),
        (["_BandedBackward"], "rest"),
        (["aten::as_strided", "aten::select"], "rest"),
    ],
)
def test_an_operation_counts_where_it_belongs(names, group):
    assert profile.group(event(*names)) == group


@pytest.mark.parametrize("precision", bench.TYPES)
def test_the_shares_are_of_the_whole_step(precision):
    shares = profile.shares(precision)
    assert sum(shares.values()) == pytest.approx(100)
    assert all(share > 0 for share in shares.values())
    # this network is small: most of its time is bookkeeping
    assert shares["moments"] < 50 and shares["rest"] > 5


@pytest.mark.parametrize("precision", bench.TYPES)
def test_a_rate_counts_the_multiply_adds(precision, monkeypatch):
    def timings(calls, device, rounds):
        outputs = calls["forward"]().shape[1]
        d_x, no_filters, _ = calls["input"]()
        no_x, d_weight, _ = calls["filters"]()
        assert d_x.shape == (1, 72, 32, 32) and no_x is None
        assert d_weight.shape == (outputs, 72, 3, 3) and no_filters is None
        work.append(32 * 32 * outputs * 72 * 9)
        return dict(forward=[2.0, 0.5], input=[1.0], filters=[4.0, 8.0])

    work = []
    monkeypatch.setattr(bench, "timings", timings)
    rates = profile.pass_rates(precision)
    billions = work[0] / 1e9
    assert rates == pytest.approx(
        dict(forward=2 * billions, input=billions, filters=billions / 4)
    )


def test_an_entry_has_shares_and_rates(monkeypatch, capsys):
    kept = []
    monkeypatch.setattr(
        profile.results, "record", lambda *entry: kept.append(entry)
    )
    monkeypatch.setattr(profile, "shares", lambda precision: {"elu": 100.0})
    monkeypatch.setattr("sys.argv", ["profile"])
    profile.main()
    ((name, data),) = kept
    assert name.startswith("profile-")
    assert data["pass_rate"].keys() == bench.TYPES.keys()
    monkeypatch.setattr("sys.argv", ["profile", "--try"])
    profile.main()
    assert len(kept) == 1  # tried, not kept
    monkeypatch.setattr(profile, "shares", None)  # nothing is measured
    monkeypatch.setattr("sys.argv", ["profile", "--help"])
    with pytest.raises(SystemExit):
        profile.main()
    assert "share_percent" in capsys.readouterr().out
