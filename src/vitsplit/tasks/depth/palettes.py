"""Palettes as tables of 256 colors: matplotlib takes most of the time of a first prediction to import."""

from __future__ import annotations

import base64

import numpy as np
from numpy.typing import NDArray

_TABLES = {
    "magma_r": (
        "+/y/+/q9+/m7+/e5/PW3/PO1/PGz/PCx/O6w/Oyu/Oqs/Oiq/Oao/OWm/OOl/eGj/d+h/d2f/dyd/dqc/dia/daY/dSX/dKV/dGT/c+S/c2Q"
        "/suO/smN/seL/saJ/sSI/sKG/sCF/r6D/ryC/ruA/rl//rd9/rV8/rN7/rF5/q94/q52/qx1/qp0/qhz/qZx/aRw/aJv/aFu/Z9s/Z1r/Ztq"
        "/Zlp/Zdo/ZVn/JNm/JJl/JBk/I5j/Ixj+4pi+4hh+4Zg+4Rg+oJf+oBe+n9e+X1d+Xtd+Xlc+Hdc+HVc93Nc93Fb9nBb9m5b9Wxb9Wpb9Ghb"
        "82db82Vc8mNc8WFc8GBd715d7l1d7lte7Vlf7Fhf61Zg6lVg6FRh51Ji5lFi5VBj5E5k4k1l4Uxm4Etm3kpn3Ulo3Ehp2kdp2UZq10Vr1kRs"
        "1ENt00Jt0UJu0EFvzkBwzT9wyz5xyj5yyD1yxjxzxTx0wzt0wjp1wDp1vjl2vTl3uzh3uTd4uDd4tjZ5tTZ5szV6sTV6sDR7rjR7rDN7qzN8"
        "qTJ8pzF9pjF9pDB9ozB+oS9+ny9+ni5+nC5/mi1/mS1/lyx/lSyAlCuAkiuAkSqAjyqAjSmAjCmAiiiBiSiBhyeBhSaBhCaBgiWBgSWBfySB"
        "fiSBfCOBeiKBeSKBdyGBdiGBdCCBcx+BcR+Bbx6Bbh6BbB2AaxyAaRyAaBuAZhqAZRqAYxl/YRh/YBh/Xhd/XRd+WxZ+WhV+WBV+VxR9VRN9"
        "UxN8UhJ8UBJ7TxF7TRF6SxB5ShB5SBB4Rw93RQ92Qw91Qg90QA9zPg9yPA9xOw9vOQ9uNw9sNQ9qNBBoMhBnMBBlLxBiLRBgKxFeKhFcKBFZ"
        "JhFXJRFVIxFSIhFQIBFNHxFLHhBJHBBGGxBEGhBBGA8/Fw88Fg46FQ44FA01Eg0zEQwxEAwvDwssDgoqDQooDAkmCwgkCgciCQcfCAYdBwUb"
        "BgUZBQQXBAQVBAMTAwMRAgIPAgINAQELAQEJAQAHAAAGAAAEAAAD"
    ),
    "Reds": (
        "//Xw/vTv/vPu/vPt/vLs/vHr/vHq/vDp/u/o/u/n/u7m/u3l/u3k/uzj/uvi/uvh/urg/ung/unf/uje/ufd/ufc/ubb/uXa/uXZ/uTY/uPX"
        "/uPW/uLV/uHU/uHT/uDS/d/R/d7Q/d3O/dzN/dvL/drK/djI/dfH/dbF/dXD/dTC/dPA/dG//dC9/c+8/c66/M25/My3/Mq2/Mm0/Miz/Mex"
        "/Mav/MWu/MOs/MKr/MGp/MCo/L+m/L6l/L2j/Lui/Lqg/Lmf/Lid/Lac/LWa/LSZ/LKX/LGW/LCU/K+T/K2R/KyQ/KuO/KmN/KiL/KeK/KaJ"
        "/KSH/KOG/KKE/KCD/J+B/J6A/J1+/Jt9/Jp7/Jl6/Jd4/JZ3/JV1/JR0/JJy+5Fx+5Bw+49v+41t+4xs+4tr+4pq+4ho+4dn+4Zm+4Rk+4Nj"
        "+4Ji+4Fh+39f+35e+31d+3xc+3pa+3lZ+3hY+3dX+3VV+3RU+3NT+3JS+3BQ+29P+25O+21N+2tL+2pK+mlJ+mdI+mZH+WRG+WNF+GFE+GBD"
        "+F5C911C91tB91pA9lk/9lc+9VY99VQ89VM79FE69FA59E44800380s28ko18kg08kcz8UUy8UQy8UIx8EEw8D8v7z4u7z0t7zss7jor7Tkr"
        "7Dgq6jcq6TUp6DQp5zMo5jIo5TEn5DAn4y8n4S4m4C0m3ywl3iol3Skk3Cgk2ycj2SYj2CUi1yQi1iMh1SIh1CEg0x8g0h4f0B0fzxwfzhse"
        "zRoezBkdyxgdyhccyBccxxccxhYcxRYbxBYbwhYbwRUbwBUavxUavhQavBQauxQZuhQZuRMZuBMZtxMYtRIYtBIYsxIYshIXsREXrxEXrhEX"
        "rREWrBAWqxAWqRAWqA8Vpw8Vpg8VpQ8Vow4UoQ4Unw0UnQ0UmwwTmQwTlwsTlQsTkwoSkQoSjwkSjQkSiwgRiggRiAgRhgcRhAcQggYQgAYQ"
        "fgUQfAUPegQPeAQPdgMPdAMOcgIOcAIObgEObAENagANaAANZwAM"
    ),
}
"""Red, green and blue in base64, of matplotlib's colormaps of the same names."""


def palette(name: str) -> NDArray[np.uint8]:
    """The colors of ``magma_r`` or ``Reds``, (256, 3)."""
    return np.frombuffer(base64.b64decode(_TABLES[name]), np.uint8).reshape(256, 3)
