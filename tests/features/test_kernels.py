from geofloor.features import _kernels


def test_kernels_compile_where_no_folder_can_hold_the_cache(monkeypatch):
    def without_cache(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    njit = _kernels.njit
    monkeypatch.setattr(_kernels, "njit", without_cache)
    assert _kernels.compiled(lambda x: x + 1)(2) == 3
