"""Why an image could not be built, in words for the person who builds it."""

from freehold.model.errors import FreeholdError


class ImageBuildError(FreeholdError):
    """A tool is missing, a tool failed, or a package cannot be had."""


class ManifestError(FreeholdError):
    """An image manifest is not what docs/architecture.md says it must be."""
