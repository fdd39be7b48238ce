"""A directory as a TUF repository: the client reads carried media the way it would read a web server."""

from collections.abc import Iterator
from pathlib import Path

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

from freehold.root_of_trust.depot.errors import MetadataIncomplete
from freehold.root_of_trust.depot.files import open_beneath

METADATA = "depot:metadata/"
_PIECE = 1 << 14


class DirectoryFetcher(FetcherInterface):
    """Serves `METADATA` + name from `directory`; the caller limits the length. `last` is what was asked for last."""

    def __init__(self, directory: Path) -> None:
        self._directory, self.last = directory, ""

    def _fetch(self, url: str) -> Iterator[bytes]:
        self.last = name = url.removeprefix("depot:")
        try:
            with open_beneath(self._directory, name) as file:
                while piece := file.read(_PIECE):
                    yield piece
        except FileNotFoundError as error:
            raise DownloadHTTPError(f"there is no {name} in {self._directory}", 404) from error
        except OSError as error:
            raise MetadataIncomplete(
                f"{name} in {self._directory} cannot be read: {error.strerror}",
                remedy="copy it again, to another medium",
            ) from error
