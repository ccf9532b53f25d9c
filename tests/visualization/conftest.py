import pytest

from pcea.visualization.renderer import check_rendering


@pytest.fixture
def can_draw():
    try:
        check_rendering()
    except (OSError, ImportError) as error:
        pytest.skip(str(error))
