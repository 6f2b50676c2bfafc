"""What a page of HTML refers to and holds."""

from html.parser import HTMLParser


class Links(HTMLParser):
    """Every address that a page refers to, its tags and the sections it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.sections: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self.addresses += [found[name] or "" for name in ("src", "href", "xlink:href", "action") if name in found]
        if tag == "section" and "id" in found:
            self.sections.append(str(found["id"]))
