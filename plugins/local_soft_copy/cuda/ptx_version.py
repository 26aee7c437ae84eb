"""Version that PTX declares: compilers declare their own, and a driver refuses a version newer than itself."""

from __future__ import annotations

import re

Version = tuple[int, int]

# PTX ISA, "Target": version that introduced a GPU.
_TARGETS: dict[str, Version] = {
    "sm_75": (6, 3),
    "sm_80": (7, 0),
    "sm_86": (7, 1),
    "sm_87": (7, 4),
    "sm_89": (7, 8),
    "sm_90": (7, 8),
    "sm_100": (8, 6),
    "sm_103": (8, 8),
    "sm_110": (9, 0),
    "sm_120": (8, 7),
    "sm_121": (8, 8),
}


def _words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


# Parts of instructions that are as old as the oldest of these GPUs.
_OLD = _words(
    "abs add and bar bfe bfi bra clz copysign cvt cvta div ex2 fma ld lg2 mad max min mov mul neg not or popc prmt rcp",
    "rem ret rsqrt selp set setp shf shfl shl shr sqrt st sub wmma xor",
    "pred b8 b16 b32 b64 u8 u16 u32 u64 s8 s16 s32 s64 f16 f32 f64 v2 v4",
    "global shared local param const to nc ftz sat rn rz rni rzi rmi rpi approx full lo hi wide uni sync warp volatile",
    "eq ne lt le gt ge equ neu ltu leu gtu geu num nan bfly idx up down l r wrap clamp",
    "load store mma a b c d aligned row col m16n16k16",
)
# Younger parts, with the version that introduced them.
_YOUNGER: dict[str, Version] = {
    "ldmatrix": (6, 5),
    "m8n8": (6, 5),
    "x1": (6, 5),
    "x2": (6, 5),
    "x4": (6, 5),
    "trans": (6, 5),
    "m16n8k8": (6, 5),
    "bf16": (7, 0),
    "m16n8k16": (7, 0),
    "cp": (7, 0),
    "async": (7, 0),
    "ca": (7, 0),
    "cg": (7, 0),
    "commit_group": (7, 0),
    "wait_group": (7, 0),
    "wait_all": (7, 0),
    "redux": (7, 0),
}
_DIRECTIVES = _words(
    "version target address_size visible entry param maxntid minnctapersm maxnreg shared global reg pragma"
)
# Old parts that became possible together later: three inputs, 16-bit floats, and 256 bits at once.
_LATER = re.compile(
    r"(?:max|min)\.[^,]*(?:,[^,]*){3}|(?:max|min|abs|ex2)\.(?:\w+\.)*f16\b|.*\bv4\.\w64\b"
    r"|(?!wmma|mma)\w+\..*\bbf16\b"
)
_STATEMENT = re.compile(
    r"[\s{}]*(?:@!?[%$\w]+\s+)?(?:(?P<instruction>[a-z]\w*(?:\.[\w:]+)*)|\.(?P<directive>[a-z]\w*))"
)
_DECLARED = re.compile(r"^\.version\s+(\d+)\.(\d+)\s*$", re.M)


def with_lowest_version(ptx: str) -> str:
    """Return PTX that declares the lowest version that its target and its instructions need.

    Text with an instruction, directive or target that this module does not know stays as it is.
    """
    declared, needed = _DECLARED.search(ptx), needed_version(ptx)
    if declared is None or needed is None or needed >= (int(declared[1]), int(declared[2])):
        return ptx
    return f"{ptx[: declared.start()]}.version {needed[0]}.{needed[1]}{ptx[declared.end() :]}"


def needed_version(ptx: str) -> Version | None:
    """Return the lowest version for the target and the instructions, or None if one of them is unknown."""
    target = re.search(r"^\.target\s+(\w+)\s*$", ptx, re.M)
    if target is None or target[1] not in _TARGETS:
        return None
    needed = _TARGETS[target[1]]
    for line in re.sub(r"//[^\n]*|/\*.*?\*/", "", ptx, flags=re.S).splitlines():
        found = _STATEMENT.match(line)
        if found is None:
            continue
        if found["directive"]:
            if found["directive"] not in _DIRECTIVES:
                return None
            continue
        if _LATER.match(line, found.start("instruction")):
            return None
        for part in found["instruction"].split("."):
            if part in _YOUNGER:
                needed = max(needed, _YOUNGER[part])
            elif part not in _OLD:
                return None
    return needed
