"""What TPM commands and response codes are called, and the errors that name them."""

COMMANDS = {
    0x126: "Clear", 0x131: "CreatePrimary", 0x147: "ActivateCredential", 0x14E: "NV_Read", 0x151: "PolicySecret",
    0x158: "Quote", 0x165: "FlushContext", 0x169: "NV_ReadPublic", 0x176: "StartAuthSession", 0x17A: "GetCapability",
    0x17B: "GetRandom", 0x17E: "PCR_Read", 0x182: "PCR_Extend",
}  # fmt: skip

# Part 2, 6.6.3. Format-one codes carry the number of the parameter, handle or session; they are named without it.
RESPONSE_CODES = {
    0x100: "INITIALIZE", 0x101: "FAILURE", 0x120: "DISABLED", 0x121: "EXCLUSIVE", 0x124: "AUTH_TYPE",
    0x125: "AUTH_MISSING", 0x126: "POLICY", 0x128: "PCR_CHANGED", 0x12D: "UPGRADE", 0x12F: "AUTH_UNAVAILABLE",
    0x130: "REBOOT", 0x142: "COMMAND_SIZE", 0x143: "COMMAND_CODE", 0x144: "AUTHSIZE", 0x145: "AUTH_CONTEXT",
    0x146: "NV_RANGE", 0x147: "NV_SIZE", 0x148: "NV_LOCKED", 0x149: "NV_AUTHORIZATION", 0x14A: "NV_UNINITIALIZED",
    0x14B: "NV_SPACE", 0x14C: "NV_DEFINED",
    0x081: "ASYMMETRIC", 0x082: "ATTRIBUTES", 0x083: "HASH", 0x084: "VALUE", 0x085: "HIERARCHY", 0x087: "KEY_SIZE",
    0x088: "MGF", 0x089: "MODE", 0x08A: "TYPE", 0x08B: "HANDLE", 0x08C: "KDF", 0x08D: "RANGE", 0x08E: "AUTH_FAIL",
    0x08F: "NONCE", 0x090: "PP", 0x092: "SCHEME", 0x095: "SIZE", 0x096: "SYMMETRIC", 0x097: "TAG", 0x098: "SELECTOR",
    0x09A: "INSUFFICIENT", 0x09B: "SIGNATURE", 0x09C: "KEY", 0x09D: "POLICY_FAIL", 0x09F: "INTEGRITY",
    0x0A0: "TICKET", 0x0A1: "RESERVED_BITS", 0x0A2: "BAD_AUTH", 0x0A3: "EXPIRED", 0x0A4: "POLICY_CC", 0x0A5: "BINDING",
    0x0A6: "CURVE", 0x0A7: "ECC_POINT",
    0x901: "CONTEXT_GAP", 0x902: "OBJECT_MEMORY", 0x903: "SESSION_MEMORY", 0x904: "MEMORY", 0x905: "SESSION_HANDLES",
    0x906: "OBJECT_HANDLES", 0x907: "LOCALITY", 0x908: "YIELDED", 0x909: "CANCELED", 0x90A: "TESTING",
    0x910: "REFERENCE_H0", 0x911: "REFERENCE_H1", 0x918: "REFERENCE_S0", 0x920: "NV_RATE", 0x921: "LOCKOUT",
    0x922: "RETRY", 0x923: "NV_UNAVAILABLE",
}  # fmt: skip


class TpmError(Exception):
    """A TPM that cannot be used, in words for the person who must act; `remedy` may be None."""

    def __init__(self, what: str, remedy: str | None = None) -> None:
        self.what, self.remedy = what, remedy
        super().__init__(f"{what}\n  what to do: {remedy}" if remedy else what)


class TpmResponseError(TpmError):
    """The TPM refused a command. `code` is the TPM_RC, `name` its name without the prefix `TPM_RC_`."""

    def __init__(self, command: int, code: int) -> None:
        self.code, (self.name, where) = code, name_response_code(code)
        super().__init__(f"TPM2_{COMMANDS.get(command, hex(command))} failed: TPM_RC_{self.name}{where} ({code:#x})")


def name_response_code(code: int) -> tuple[str, str]:
    """Name of a TPM_RC and, for format one, where in the command the fault is (Part 1, 39)."""
    if not code & 0x80:
        return RESPONSE_CODES.get(code, "UNKNOWN"), ""
    number = code >> 8 & 0xF
    kind = "parameter" if code & 0x40 else "session" if number & 8 else "handle"
    index = number if code & 0x40 else number & 7
    return RESPONSE_CODES.get(code & 0x3F | 0x80, "UNKNOWN"), f" in {kind} {index}" if index else ""
