import os

import pytest

from ebjr.threads import available_cores


@pytest.mark.parametrize(
    ("quota", "most"), [("150000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("", None)]
)
def test_a_container_uses_no_more_cores_than_its_quota(tmp_path, quota, most):
    (tmp_path / "cpu.max").write_text(quota)
    everything = len(os.sched_getaffinity(0))
    assert available_cores(tmp_path / "cpu.max") == (most or everything)
    assert available_cores(tmp_path / "none") == everything
