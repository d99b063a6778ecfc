"""docs/scaling.md agrees with the records, the networks and the formulas. Tests of the formulas."""

import json
import re

import pytest

from scripts import RECORDS, scaling
from scripts.scaling import (
    BF16,
    Cluster,
    Net,
    all_reduce_seconds,
    compute_seconds,
    exposed_seconds,
    largest_efficient,
    strong_efficiency,
    weak_efficiency,
)

# round numbers: 1 ms per image, 1 ms per layer, 2 GPUs per node
ROUND = Cluster(1e9, 1e-3, 2, 1e9, 1e8, latency_inside=1e-5, latency_between=1e-4)
NET = Net(flops=1e6, buckets=(1_000_000, 250_000), layers=6, norms=3, batch=16, images=100)


def test_the_page_is_up_to_date():
    assert scaling.main(["--check"]) == 0, "python scripts/scaling.py writes it"


def test_check_detects_an_outdated_page(monkeypatch, tmp_path):
    text = scaling.PAGE.read_text()
    monkeypatch.setattr(scaling, "PAGE", tmp_path / "scaling.md")
    scaling.PAGE.write_text(text.replace("2,425,024", "2,425,025", 1))
    assert scaling.main(["--check"]) == 1 and "2,425,025" in scaling.PAGE.read_text()
    assert scaling.main([]) == 0 and scaling.PAGE.read_text() == text


def test_options_of_other_machines_print_a_table_and_leave_the_page_unchanged(capsys):
    before = scaling.PAGE.read_text()
    assert scaling.main(["--between", "1e8"]) == 0
    output = capsys.readouterr().out
    assert "| Conv4 | 512 |" in output and output.strip() not in before and scaling.PAGE.read_text() == before


@pytest.mark.parametrize("option", ["--flops", "--inside", "--between", "--node"])
def test_an_option_that_is_divided_by_must_not_be_0(option, capsys):
    assert scaling.main([option, "0"]) == 2
    assert capsys.readouterr().err.count(f"argument {option}: '0' given, ") == 1
    assert scaling.main([option, "1"]) == 0


@pytest.mark.parametrize("option", ["--layer", "--latency-inside", "--latency-between"])
def test_a_duration_may_be_0(option):
    assert scaling.main([option, "0"]) == 0


@pytest.mark.parametrize(
    ("gpus", "seconds"),
    [(1, 0.0), (2, 1e-3 + 2e-5), (4, 1e-3 + 2e-5 + 1e-2 + 2e-4), (6, 1e-3 + 2e-5 + 4 / 3 * 1e-2 + 4e-4)],
)
def test_all_reduce_is_a_ring_in_a_node_and_trees_between_nodes(gpus, seconds):
    assert all_reduce_seconds(1e6, gpus, ROUND) == pytest.approx(seconds)


def test_exposed_communication_is_the_last_bucket_and_the_part_without_overlap():
    assert compute_seconds(NET, 8, ROUND) == pytest.approx(14e-3)
    used = all_reduce_seconds(4 * 6, 2, ROUND)
    first, last = all_reduce_seconds(4e6, 2, ROUND), all_reduce_seconds(1e6, 2, ROUND)
    assert first + last < 14e-3 * 2 / 3 and exposed_seconds(NET, 8, 2, ROUND, 4) == pytest.approx(last + used)
    first, last, used = (all_reduce_seconds(size, 4, ROUND) for size in (4e6, 1e6, 24))
    assert first + last > 10e-3 * 2 / 3 + last
    assert exposed_seconds(NET, 4, 4, ROUND, 4) == pytest.approx(first + last - 10e-3 * 2 / 3 + used)


def test_efficiencies_are_relative_to_one_gpu_with_the_whole_batch():
    waits = [exposed_seconds(NET, images, 2, ROUND, BF16) for images in (8, 16)]
    assert strong_efficiency(NET, 2, ROUND, BF16) == pytest.approx(22e-3 / (2 * (14e-3 + waits[0])))
    assert weak_efficiency(NET, 2, ROUND, BF16) == pytest.approx(22e-3 / (22e-3 + waits[1]))


def test_the_limit_is_the_largest_efficient_number_of_gpus():
    free = Cluster(1e9, 1e-3, 1024, 1e30, 1e30, 0.0, 0.0)  # 22 ms, on n GPUs 6 + 16/n: 0.55 on 4, 0.34 on 8
    assert [largest_efficient(NET, free, least) for least in (0.5, 0.3, 0.0)] == [4, 8, 16]
    assert largest_efficient(NET, ROUND, 0.9) == 1


def test_counted_message_sizes_equal_the_measured_ones():
    nets = {name: scaling.count_sizes(name) for name in scaling.NETS}
    for path in RECORDS.glob("bench_parallel_*.json"):
        found = json.loads(path.read_text())["parallel"]
        for who, number in (("ours", 4), ("ours, bf16 sent", 2)):
            sent, net = found["sent"][who], nets[found["net"]]
            assert sent["gradients"] == [number * bucket for bucket in net.buckets]
            assert (sent["trained"], sent["used"]) == (net.trained, 4 * net.layers)
    assert [net.norms for net in nets.values()] == [0, 20, 53] and nets["ResNet-50"].layers == 54
    assert nets["ResNet-50"].flops == pytest.approx(3 * 2 * 4.1e9, rel=0.02)  # 4.1·10⁹ multiplications per forward pass


def test_less_than_one_image_per_gpu_is_marked_as_refused():
    line = scaling.predicted({"net": NET}, ROUND).splitlines()[3]
    assert line.startswith("| net | 64 | 0.25: refused | – | – | – | – | 1,024 |")


def test_the_efficiency_of_evaluation_depends_on_how_the_batches_divide():
    assert scaling.evaluation({"net": NET}).splitlines()[-1] == "| net: 7 of 16 | 0.88 | 0.11 | 0.01 |"


def test_every_table_of_the_page_is_filled_and_has_the_measured_efficiency():
    text = scaling.PAGE.read_text()
    tables = re.findall(r"<!-- (\w+): python scripts/scaling.py -->\n(.*?)\n<!-- end -->", text, flags=re.S)
    assert [name for name, table in tables if table] == ["measured", "messages", "assumed", "many", "evaluation"]
    record = json.loads((RECORDS / "bench_parallel_fp32.json").read_text())["parallel"]
    share = record["efficiency"]["ours/fp32/strong"]
    assert f"{share['median']:.2f} ± {share['iqr']:.2f}" in tables[0][1]
