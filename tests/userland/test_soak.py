"""Whether memory grows under a mixed load; the whole measurement is `llmasos bench soak`."""

import pytest

from llmasos.userland.bench import soak

SHORT_S, MOST_MB_PER_H = 300.0, 30.0  # half as long as the figure, so its slope is less certain


def test_the_slope_is_that_of_the_line_through_the_samples() -> None:
    rising = [(float(second), 100 + second / 360) for second in range(0, 300, 2)]
    assert soak.slope_mb_per_h(rising) == pytest.approx(10)
    noisy = [(time_s, size + (0.5 if index % 2 else -0.5))
             for index, (time_s, size) in enumerate(rising)]  # fmt: skip
    assert soak.slope_mb_per_h(noisy) == pytest.approx(10, abs=0.5)
    assert soak.slope_mb_per_h([(5.0, 100.0)]) == 0


@pytest.mark.long
@pytest.mark.timeout(900)
def test_neither_the_kernel_nor_the_recall_process_grows_in_five_minutes() -> None:
    samples, load = soak.soaked(SHORT_S)
    half = [one for one in samples if one.time_s >= SHORT_S / 2]
    assert load.lives > 100
    assert soak.slope_mb_per_h([(one.time_s, one.kernel) for one in half]) <= MOST_MB_PER_H
    assert soak.slope_mb_per_h([(one.time_s, one.recall) for one in half]) <= MOST_MB_PER_H
