"""What a config becomes where it runs."""

from collections.abc import Callable

import pytest

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.methods import METHODS, load_method
from rayssl.pipeline.stages.start import Prepared


@pytest.mark.parametrize("method", METHODS)
def test_small_views_are_for_methods_that_take_any_size(method: str, prepared: Callable[..., Prepared]) -> None:
    changes = {"train.small_views": 0.5}
    if load_method(method).any_view_size:
        assert prepared("run", method, changes).config.train.small_views == 0.5
        return
    with pytest.raises(UserError, match=rf"--train.small-views 0.5: {method} takes views of one size only"):
        prepared("run", method, changes)
