"""Give each comment to the item or statement that it is about."""

from __future__ import annotations

from epsc.grammar.scan import Comment
from epsc.ir.source import Source
from epsc.ir.spec import Comments


class CommentTaker:
    """Hands out the comments of a file, in order, to pieces that ask in order of their places.

    None is lost: a comment in the midst of a statement is moved above it.
    """

    def __init__(self, source: Source, comments: list[Comment]) -> None:
        self._text = source.text
        self._comments = comments
        self._next = 0

    def before(self, offset: int) -> tuple[str, ...]:
        """All that are left before a place."""
        start = self._next
        while self._next < len(self._comments) and self._comments[self._next].start < offset:
            self._next += 1
        return tuple(comment.text for comment in self._comments[start : self._next])

    def behind(self, offset: int) -> str:
        """The one that follows a place on its line, with nothing in between."""
        if self._next == len(self._comments):
            return ""
        comment = self._comments[self._next]
        between = self._text[offset : comment.start]
        if "\n" in between or not (between.isspace() or not between):
            return ""
        self._next += 1
        return comment.text

    def of(self, end: int) -> Comments:
        """Those of a statement or item that has no block and ends at `end`."""
        return Comments(self.before(end), self.behind(end))
