"""Pages of the documentation site that are no files of docs/, and links that lead out of it. MkDocs calls this."""

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# A file of the repository → the page that shows it
SHOWN = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
REFERENCE = (
    "# Reference\n\nWhat `import rayssl` offers. Folders and files may be given as text or as `pathlib.Path`.\n\n"
)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made from other files."""
    from mkdocs.structure.files import File

    for source, page in SHOWN.items():
        files.append(File.generated(config, page, content=relinked((ROOT / source).read_text(), source)))
    files.append(File.generated(config, "reference.md", content=reference()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links of a page of docs/; the others have theirs already."""
    own = (ROOT / "docs" / page.file.src_uri).is_file()
    return relinked(markdown, f"docs/{page.file.src_uri}") if own else markdown


def relinked(text: str, source: str) -> str:
    """Links for the site: to the page that shows a file; one that no page shows keeps its text only."""

    def link(found: re.Match[str]) -> str:
        label, target, anchor = found.groups(default="")
        if "://" in target or not target:
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path in SHOWN:
            return f"[{label}]({SHOWN[path]}{anchor})"
        if path.startswith("docs/") and (ROOT / path).is_file():
            return f"[{label}]({path.removeprefix('docs/')}{anchor})"
        return label

    return re.sub(r"\[([^][]*)\]\(([^()#\s]*)(#[^()\s]*)?\)", link, text)


def reference() -> str:
    """Every public name."""
    tree = ast.parse((ROOT / "rayssl/__init__.py").read_text())
    [names] = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    return REFERENCE + "\n\n".join(f"::: rayssl.{name}" for name in names if not name.startswith("_"))
