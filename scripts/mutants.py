"""What scripts/mutate.py changes: mechanical mutations of csrc/{base,coro,aio,block}, and the switches
by which many of them share one build.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from run_tests import ROOT

FOLDERS = ("base", "coro", "aio", "block")

# (kind, what is looked for, what it becomes). The first group of each pattern is replaced.
SWAPS: tuple[tuple[str, str, str], ...] = (
    ("operator", r"\w (<) \w", "<="),
    ("operator", r"\w (<=) \w", "<"),
    ("operator", r"\w (>) \w", ">="),
    ("operator", r"\w (>=) \w", ">"),
    ("operator", r"(==)", "!="),
    ("operator", r"(!=)", "=="),
    ("operator", r"(&&)", "||"),
    ("operator", r" (\|\|) ", "&&"),
    ("operator", r"[\w)\]] (\+) \w", "-"),
    ("operator", r"[\w)\]] (-) \w", "+"),
    ("operator", r"(\+\+)", "--"),
    ("operator", r"(--)", "++"),
    ("operator", r"(\+=)", "-="),
    ("operator", r"(-=)", "+="),
    ("operator", r"[\w)] (&) ~?\w", "|"),
    ("operator", r"[ (](!)\w", ""),
    ("operator", r"(std::min)\b", "std::max"),
    ("operator", r"(std::max)\b", "std::min"),
    ("constant", r"\b(true)\b", "false"),
    ("constant", r"\b(false)\b", "true"),
    ("constant", r"(?<![\w.'])(0)(?![\w.'])", "1"),
    ("constant", r"(?<![\w.'])(1)(?![\w.'])", "2"),
    ("constant", r"(?<![\w.'])([2-9]|[1-9]\d+)(?![\w.'])", "1"),
    ("order", r"_(acquire)\(", "relaxed"),
    ("order", r"_(release)\(", "relaxed"),
    ("order", r"_(acq_rel)\(", "relaxed"),
    ("order", r"_(seq_cst)\(", "acq_rel"),
)
# A call or an assignment on a line of its own; a declaration has a blank before its name.
STATEMENT = re.compile(
    r"^\s+(?!return|co_return|break|continue|else|case|using|throw|delete)"
    r"[\w:.>\-\[\]*()]+(?:\(.*\)| [-+|&]?= .*|\+\+|--);$"
)
# No place for a mutation: what checks, what the preprocessor and the compiler read, and text.
LEFT_ALONE = re.compile(
    r"^\s*(?:#|//|static_assert|ENGINE_|using |template|friend |extern )"
    r"|\boperator\b|= delete|= default|throw_|__attribute__"
)


@dataclass(frozen=True)
class Mutation:
    number: int
    file: str
    line: int  # from 1
    kind: str
    before: str
    after: str


def without_text(line: str) -> str:
    """Strings and comments blanked, so that columns stay."""
    line = re.sub(r'"(?:[^"\\]|\\.)*"', lambda text: '"' + "_" * (len(text[0]) - 2) + '"', line)
    return re.sub(r"//.*$", lambda text: " " * len(text[0]), line)


def changes_of(line: str) -> Iterator[tuple[str, str]]:
    """(kind, the line afterwards)."""
    code = without_text(line)
    if LEFT_ALONE.search(code) or not code.strip():
        return
    for kind, pattern, new in SWAPS:
        for found in re.finditer(pattern, code):
            text = new
            if kind == "order" and new == "acq_rel":  # of a load or a store there is only half of it
                text = {"load": "acquire", "store": "release"}.get(
                    code[: found.start()].rpartition(".")[2].rpartition(">")[2], new
                )
            yield kind, line[: found.start(1)] + text + line[found.end(1) :]
    if STATEMENT.match(code.rstrip()):
        yield "statement", re.match(r"\s*", line)[0] + ";"  # type: ignore[index]


def candidates() -> list[tuple[str, int, str, str, str]]:
    found = []
    for folder in FOLDERS:
        for path in sorted((ROOT / "csrc" / folder).glob("*.*")):
            if path.name == "atomic.hh":  # the explorers have another one
                continue
            name = str(path.relative_to(ROOT))
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                found += [(name, number, kind, line, after) for kind, after in changes_of(line)]
    return found


def choose(count: int, seed: int) -> list[Mutation]:
    """One in eight is an order, of which tests on this processor see few; the other kinds share the rest."""
    generator = random.Random(seed)
    by_kind: dict[str, list[tuple[str, int, str, str, str]]] = {}
    for each in candidates():
        by_kind.setdefault(each[2], []).append(each)
    chosen: list[tuple[str, int, str, str, str]] = []
    kinds = sorted(by_kind, key=lambda kind: kind != "order")
    for left, kind in zip(range(len(kinds), 0, -1), kinds, strict=True):
        share = count // 8 if kind == "order" else (count - len(chosen)) // left
        share = min(share, len(by_kind[kind]))
        chosen += generator.sample(by_kind[kind], share)
    generator.shuffle(chosen)
    return [Mutation(i, *each) for i, each in enumerate(chosen)]


# ---- switches

# In the copy alone: which mutant is on, and a byte for each that was reached, in a file, so that what a child
# reaches counts as well.
SWITCH_HEADER = """\
#pragma once
#include <cstdlib>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
namespace engine::base {
inline int mutant_on = -1;
inline volatile unsigned char* mutants_reached = nullptr;
[[gnu::constructor(101)]] static void find_mutant() {
    if (const char* number = getenv("ENGINE_MUTANT")) mutant_on = atoi(number);
    const char* path = getenv("ENGINE_MUTANTS_REACHED");
    int fd = path != nullptr && mutants_reached == nullptr ? open(path, O_RDWR) : -1;
    if (fd < 0) return;
    void* memory = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (memory != MAP_FAILED) mutants_reached = static_cast<unsigned char*>(memory);
}
inline bool mutant(int number) noexcept {
    if (__builtin_expect(mutants_reached != nullptr, false)) mutants_reached[number] = 1;
    return __builtin_expect(mutant_on == number, false);
}
}  // namespace engine::base
"""
SWITCHES_MAX = 4096  # bytes of the mapping
SWITCH_INCLUDE = '#include "base/mutant.hh"'
DECLARATION = re.compile(
    r"(?!(?:return|co_return|co_await|if|while|for|else|case|throw|delete)\b)"
    r"(?:(?:const|static|constexpr|inline|mutable) )*[\w:]+(?:<[^;=]*>)?[ *&]+[\w\[\]]+"
    r" ?(?:=|;|\{|\(|ENGINE_)"
)
NO_SWITCH = re.compile(r"\bconstexpr\b|\bconcept\b|^\s*[\w:]+ \w+\[|&\)\[")
OPERAND = r"[\w*\"][\w:.>()\[\]\"-]*"


def balanced(code: str) -> bool:
    depth = 0
    for sign in code:
        depth += (sign in "([{") - (sign in ")]}")
        if depth < 0:
            return False
    return depth == 0


def closing(code: str, start: int) -> int:
    """Of the parenthesis there; or -1."""
    depth = 0
    for at in range(start, len(code)):
        depth += (code[at] == "(") - (code[at] == ")")
        if depth == 0:
            return at
    return -1


def expressions(code: str) -> Iterator[tuple[int, int]]:
    """Places of whole expressions: conditions, what is returned, what is assigned, and comparisons."""
    for found in re.finditer(r"\b(?:if|while|for) \(", code):
        end = closing(code, found.end() - 1)
        at = found.end()
        for part in code[at:end].split(";") if end > 0 else ():
            yield at + len(part) - len(part.lstrip()), at + len(part)
            at += len(part) + 1
    for found in re.finditer(r"\breturn ([^;{}]*);|[\w\])] = ([^;{}]*);", code):
        yield found.span(1 if found[1] is not None else 2)
    for found in re.finditer(
        rf"(?<![\w.:>)\]\"])(?<![=+*/-] )({OPERAND} (?:==|!=) [\w:\"]+)(?= |;|\)|$)", code
    ):
        yield found.span(1)


def choice(variants: list[tuple[int, str]], before: str) -> str:
    chosen = "".join(f"::engine::base::mutant({number}) ? ({text}) : " for number, text in variants)
    return f"({chosen}({before}))"


def with_switches(line: str, variants: list[tuple[int, str]]) -> str | None:
    """The line with all of the variants in it; None where they do not go into one."""
    code = without_text(line)
    if NO_SWITCH.search(code):
        return None
    starts, tails = [], []
    for _, after in variants:
        same = next((i for i, (a, b) in enumerate(zip(line, after, strict=False)) if a != b), 0)
        tail = 0
        while tail < min(len(line), len(after)) - same and line[-1 - tail] == after[-1 - tail]:
            tail += 1
        starts.append(same)
        tails.append(len(line) - tail)
    places = [
        (start, end)
        for start, end in expressions(code)
        if start <= min(starts) and max(tails) <= end and balanced(code[start:end])
        if not re.search("co_await|; |, \\w+ =|^auto|^[\\w:]+ [*&]?\\w+ =", code[start:end])
    ]
    if places:
        start, end = min(places, key=lambda place: place[1] - place[0])
        parts = [(number, after[start : len(after) - (len(line) - end)]) for number, after in variants]
        return line[:start] + choice(parts, line[start:end]) + line[end:]
    if body := re.fullmatch(r"(.*\{ )([^{};]+;)( \}\s*)", code):  # a function on one line
        inner = [(n, after[body.start(2) : len(after) - (len(line) - body.end(2))]) for n, after in variants]
        within = with_switches(line[body.start(2) : body.end(2)], inner)
        return within and line[: body.start(2)] + within + line[body.end(2) :]
    stripped = code.strip()
    if (
        stripped.endswith(";")
        and balanced(stripped)
        and not re.match(rf"\((?!void)|{DECLARATION.pattern}", stripped)
    ):
        text = line[: len(code.rstrip())].strip()
        for number, after in reversed(variants):
            mutated = after[: len(without_text(after).rstrip())].strip()
            text = f"if (::engine::base::mutant({number})) {{ {mutated} }} else {{ {text} }}"
        return f"{{ {text} }}"
    if len(variants) == 1:
        number, after = variants[0]
        old = line[starts[0] : tails[0]]
        new = after[starts[0] : len(after) - (len(line) - tails[0])]
        if re.fullmatch(r"\d+", old) and re.fullmatch(r"\d+", new):
            return line[: starts[0]] + choice([(number, new)], old) + line[tails[0] :]
        whole = re.search(r"\b(true|false)\b(?=[^\w]*$)", code)
        if whole and whole.start() <= starts[0] and tails[0] <= whole.end():
            other = "false" if whole[1] == "true" else "true"
            return line[: whole.start()] + choice([(number, other)], whole[1]) + line[whole.end() :]
    return None
