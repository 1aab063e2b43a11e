"""Numbers of attention heads of a student."""

from __future__ import annotations

from collections.abc import Callable

from geofloor._validation import check_number

_SMALLEST_HEAD = 16  # Table 8 keeps the teacher's number of heads as long as heads have this size
_EVEN = ", with an even number of rotated dimensions each"
_SEARCHED = 128  # widths on either side of a width without a number of heads


def rotated_dimensions(size: int, share: float) -> int | None:
    """Round the rotated share of a head to an even number of dimensions; None if fewer than 2 would remain."""
    if share == 1.0:
        return size if size % 2 == 0 else None
    return max(2 * round(size * share / 2), 2) if size >= 2 else None


def choose_heads(
    width: int,
    n_heads: int,
    teacher_width: int,
    *,
    n_key_value_heads: int | None = None,
    wanted: int | None = None,
    can_rotate: Callable[[int], bool] | None = None,
) -> tuple[int, int]:
    """Choose the student's numbers of query heads and of key and value heads.

    Parameters
    ----------
    width : int
        Of the student.
    n_heads, teacher_width, n_key_value_heads : int
        Of the teacher.
    wanted : int or None
        Query heads of the student, if the caller has chosen them.
    can_rotate : callable or None
        Tells whether rotary embeddings can be applied to heads of a given size; None without rotary embeddings.

    Raises
    ------
    ValueError
        If no number of heads fits; the message names widths or numbers that do.
    """
    if wanted is not None:
        wanted = check_number("n_heads", wanted, 1, whole=True)
    head_size = teacher_width // n_heads
    group = n_heads // (n_key_value_heads or n_heads)
    smallest = min(_SMALLEST_HEAD, head_size)

    def fitting(width: int) -> list[int]:
        sizes = {n: width // n for n in range(1, n_heads + 1) if width % n == 0}
        return [
            n
            for n, size in sizes.items()
            if (size >= smallest or n == 1) and size <= 2 * head_size and (can_rotate is None or can_rotate(size))
        ]

    if wanted is not None:
        possible = [n for n in range(1, width + 1) if width % n == 0 and (can_rotate is None or can_rotate(width // n))]
        if wanted not in possible:
            raise ValueError(
                f"n_heads={wanted!r} can't divide width={width}{_EVEN if can_rotate else ''}; use one of {possible}."
            )
    found = fitting(width) if wanted is None else [wanted]
    if not found:
        distances = range(1, _SEARCHED + 1)
        near = [w for distance in distances for w in (width - distance, width + distance) if w > 0 and fitting(w)]
        raise ValueError(
            f"width={width} can't be divided into at most {n_heads} heads of {smallest} to {2 * head_size} "
            f"dimensions{_EVEN if can_rotate else ''}; use {' or '.join(map(str, sorted(near[:2])))}."
        )
    n = max(found, key=lambda n: (n % group == 0, n))
    return n, _shared_heads(n, group, n_key_value_heads or n)


def keep_head_size(
    width: int, teacher_width: int, n_heads: int, n_key_value_heads: int | None, *, wanted: int | None = None
) -> tuple[int, int]:
    """Choose the student's numbers of heads if they keep the teacher's size.

    The number falls with the width. It divides the width, as many configurations demand. At the teacher's own width it
    is the teacher's.

    Parameters
    ----------
    width : int
        Of the student.
    teacher_width, n_heads, n_key_value_heads : int
        Of the teacher.
    wanted : int or None
        Query heads of the student, if the caller has chosen them.

    Returns
    -------
    n_heads, n_key_value_heads : int
        Query heads, and heads of keys and values.

    Raises
    ------
    ValueError
        If `wanted` does not divide the width.

    Examples
    --------
    >>> from geofloor.students._heads import keep_head_size
    >>> keep_head_size(512, 1024, 16, 8), keep_head_size(320, 640, 4, 1)
    ((8, 4), (4, 1))
    """
    group = n_heads // (n_key_value_heads or n_heads)
    possible = [n for n in range(1, max(n_heads, width) + 1) if width % n == 0]
    if wanted is not None:
        wanted = check_number("n_heads", wanted, 1, whole=True)
        if wanted not in possible:
            raise ValueError(f"n_heads={wanted!r} can't divide width={width}; use one of {possible}.")
        return wanted, _shared_heads(wanted, group, n_key_value_heads or wanted)
    if width == teacher_width:
        return n_heads, n_key_value_heads or n_heads
    share = n_heads * width / teacher_width
    found = [n for n in possible if n <= n_heads]
    n = min(found, key=lambda n: (n % group != 0, abs(n - share), -n))
    return n, _shared_heads(n, group, n_key_value_heads or n)


def _shared_heads(n_heads: int, group: int, most: int) -> int:
    """Return the number of key and value heads that keeps the size of groups, or the largest smaller one."""
    if n_heads % group == 0:
        return n_heads // group
    return max(k for k in range(1, n_heads + 1) if n_heads % k == 0 and k <= most)
