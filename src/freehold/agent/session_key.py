"""The key of one session: P-256, made by the libcrypto that Python's `ssl` uses. It is never in a file.

`ssl` itself makes no keys, and the OS image has no `openssl` program.
"""

import base64
import ctypes

from freehold.agent.errors import AgentError


class SessionKey:
    """`public` is a SubjectPublicKeyInfo in DER; `private_pem` an EC PRIVATE KEY (RFC 5915)."""

    def __init__(self) -> None:
        crypto = ctypes.CDLL("libcrypto.so.3")
        pointer = ctypes.c_void_p
        crypto.EVP_PKEY_CTX_new_from_name.restype = pointer
        context = pointer(crypto.EVP_PKEY_CTX_new_from_name(None, b"EC", None))
        key = pointer()
        try:
            made = (
                context.value is not None
                and crypto.EVP_PKEY_keygen_init(context) == 1
                and crypto.EVP_PKEY_CTX_set_group_name(context, b"P-256") == 1
                and crypto.EVP_PKEY_generate(context, ctypes.byref(key)) == 1
            )
            if not made:
                raise AgentError("libcrypto made no P-256 key", remedy="rebuild the agent's image")
            self.public = _der(crypto.i2d_PUBKEY, key)
            text = base64.encodebytes(_der(crypto.i2d_PrivateKey, key))
        finally:
            crypto.EVP_PKEY_free(key)
            crypto.EVP_PKEY_CTX_free(context)
        self.private_pem = b"-----BEGIN EC PRIVATE KEY-----\n" + text + b"-----END EC PRIVATE KEY-----\n"


def _der(encode: "ctypes._NamedFuncPointer", key: ctypes.c_void_p) -> bytes:
    """What an i2d function of libcrypto writes."""
    length = encode(key, None)
    if length <= 0:
        raise AgentError("libcrypto encoded no key", remedy="rebuild the agent's image")
    buffer = ctypes.create_string_buffer(length)
    encode(key, ctypes.byref(ctypes.cast(buffer, ctypes.c_void_p)))
    return buffer.raw
