"""Security headers."""

from typing import Final

Headers = tuple[tuple[bytes, bytes], ...]

# Of answers that `serving.http.origins` does not share with other origins.
SAME_ORIGIN: Final[Headers] = ((b"cross-origin-resource-policy", b"same-origin"),)
_ALL: Final[Headers] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)
_NOTHING: Final = b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
NO_PAGE: Final[Headers] = (*_ALL, (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"))
# Of answers that come from no application.
API: Final[Headers] = (*NO_PAGE, *SAME_ORIGIN)
_PAGE: Final[Headers] = (
    *_ALL,
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()"),
)
# A page's photos are blobs of its own; Swagger UI draws its icons from data: and styles elements in its markup.
PAGES: Final[dict[str, Headers]] = {
    "/": (
        *_PAGE,
        (
            b"content-security-policy",
            _NOTHING + b"; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'",
        ),
    ),
    "/docs": (
        *_PAGE,
        (
            b"content-security-policy",
            _NOTHING + b"; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'",
        ),
    ),
}
