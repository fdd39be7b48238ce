"""AccountService: accounts, roles, password and lockout policy."""

import re
from collections.abc import Iterable

from freehold_lab.bmc.accounts import ROLES
from freehold_lab.bmc.core import OK, ROOT, Call, JsonObject, Reply, Resource, collection, created, link
from freehold_lab.bmc.fields import Fields, OneOf, Range
from freehold_lab.bmc.messages import RedfishError
from freehold_lab.bmc.state import Account

SERVICE = f"{ROOT}/AccountService"
ACCOUNT_LIMIT = 16

# Property of the AccountService -> field of `AccountPolicy`
POLICY = {
    "AccountLockoutThreshold": "lockout_threshold",
    "AccountLockoutDuration": "lockout_duration",
    "AccountLockoutCounterResetAfter": "lockout_counter_reset_after",
    "MinPasswordLength": "min_password_length",
    "MaxPasswordLength": "max_password_length",
}


async def _service(call: Call) -> JsonObject:
    policy = call.bmc.store.data.policy
    return {
        "Name": "Account Service",
        "Status": OK,
        "ServiceEnabled": True,
        **{name: getattr(policy, attribute) for name, attribute in POLICY.items()},
        "AccountLockoutCounterResetEnabled": True,
        "AuthFailureLoggingThreshold": 1,
        "LocalAccountAuth": "Enabled",
        "HTTPBasicAuth": "Enabled",
        "LDAP": {
            "AccountProviderType": "LDAPService",
            "ServiceEnabled": policy.directory,
            "ServiceAddresses": ["ldaps://directory.lab.example"],
        },
        "Accounts": link(f"{SERVICE}/Accounts"),
        "Roles": link(f"{SERVICE}/Roles"),
    }


async def _patch_service(call: Call) -> None:
    policy = call.bmc.store.data.policy
    wanted = {attribute: call.body.get(name, getattr(policy, attribute)) for name, attribute in POLICY.items()}
    # AccountService, AccountLockoutCounterResetAfter: "shall be less than or equal to AccountLockoutDuration"
    if wanted["lockout_duration"] and wanted["lockout_counter_reset_after"] > wanted["lockout_duration"]:
        raise RedfishError("PropertyValueConflict", "AccountLockoutCounterResetAfter", "AccountLockoutDuration")
    if wanted["min_password_length"] > wanted["max_password_length"]:
        raise RedfishError("PropertyValueConflict", "MinPasswordLength", "MaxPasswordLength")
    for attribute, value in wanted.items():
        setattr(policy, attribute, value)
    policy.directory = call.body.get("LDAP", {}).get("ServiceEnabled", policy.directory)
    call.bmc.record("AccountPolicyChanged", ", ".join(f"{k}={v}" for k, v in call.body.items()), origin=SERVICE)


def _find(call: Call) -> Account:
    account = call.bmc.accounts.all().get(call["account"])
    if account is None:
        raise call.missing()
    return account


async def _members(call: Call) -> Iterable[str]:
    return sorted(call.bmc.accounts.all(), key=int)


async def _account(call: Call) -> JsonObject:
    account = _find(call)
    return {
        "Name": "User Account",
        "UserName": account.user_name,
        "Password": None,
        "RoleId": account.role,
        "Enabled": account.enabled,
        "Locked": call.bmc.accounts.locked(account),
        "PasswordChangeRequired": account.password_change_required,
        "AccountTypes": ["Redfish"],
        "Links": {"Role": link(f"{SERVICE}/Roles/{account.role}")},
    }


async def _create(call: Call) -> Reply:
    body = call.body
    if len(call.bmc.accounts.all()) >= ACCOUNT_LIMIT:
        raise RedfishError("CreateLimitReachedForResource")
    _check_name(body["UserName"])
    account = call.bmc.accounts.add(body["UserName"], body["Password"], body["RoleId"])
    account.enabled = body.get("Enabled", True)
    account.password_change_required = body.get("PasswordChangeRequired", False)
    call.bmc.record("AccountAdded", account.user_name, account.role, origin=f"{SERVICE}/Accounts/{account.id}")
    return created(f"{SERVICE}/Accounts/{account.id}")


async def _patch(call: Call) -> None:
    account, body, accounts = _find(call), call.body, call.bmc.accounts
    _check_privilege(call, account)
    if body.get("Locked") is True:
        raise RedfishError("PropertyValueNotInList", True, "Locked", pointer="Locked")
    _check_last_administrator(call, account, role=body.get("RoleId"), enabled=body.get("Enabled"))
    name = body.get("UserName", account.user_name)
    if name != account.user_name:
        _check_name(name)
        if accounts.by_name(name):
            raise RedfishError("ResourceAlreadyExists", "ManagerAccount", "UserName", name)
    if "Password" in body:
        accounts.set_password(account, body["Password"])
    account.user_name = name
    account.role = body.get("RoleId", account.role)
    account.enabled = body.get("Enabled", account.enabled)
    account.password_change_required = body.get("PasswordChangeRequired", account.password_change_required)
    if body.get("Locked") is False:
        account.failures, account.locked_until = 0, 0.0
    if not account.enabled or "Password" in body:
        # Other sessions of an account whose password changed must not live on; the one that changed it may.
        token = call.http.headers.get("X-Auth-Token") if call.http else None
        call.bmc.sessions.close(lambda s: s.account_id != account.id or (account.enabled and s.token == token))
    call.bmc.record("AccountChanged", account.user_name, origin=call.uri)


async def _delete(call: Call) -> None:
    account = _find(call)
    if not (call.account and "ConfigureUsers" in ROLES[call.account.role]):
        raise RedfishError("InsufficientPrivilege")
    _check_last_administrator(call, account, enabled=False)
    del call.bmc.accounts.all()[account.id]
    call.bmc.sessions.close(lambda session: session.account_id != account.id)
    call.bmc.record("AccountRemoved", account.user_name, origin=SERVICE)


def _check_privilege(call: Call, account: Account) -> None:
    """Without ConfigureUsers one may change only one's own password (DSP0266, 13.4, ConfigureSelf)."""
    own = call.account is not None and call.account.id == account.id
    if call.account and "ConfigureUsers" in ROLES[call.account.role]:
        return
    if not own or set(call.body) - {"Password"}:
        raise RedfishError("InsufficientPrivilege")


def _check_last_administrator(call: Call, account: Account, *, role: str | None = None, enabled: bool | None) -> None:
    """A BMC that nobody can administer is a brick: refuse to make one."""
    others = [
        other
        for other in call.bmc.accounts.all().values()
        if other.id != account.id and other.role == "Administrator" and other.enabled
    ]
    loses = enabled is False or (role is not None and role != "Administrator")
    if account.role == "Administrator" and loses and not others:
        raise RedfishError("ResourceCannotBeDeleted")


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,32}", name):
        raise RedfishError("PropertyValueFormatError", name, "UserName", pointer="UserName")


async def _role_members(_: Call) -> Iterable[str]:
    return ROLES


async def _role(call: Call) -> JsonObject:
    if call["role"] not in ROLES:
        raise call.missing()
    return {
        "Name": "User Role",
        "RoleId": call["role"],
        "IsPredefined": True,
        "AssignedPrivileges": list(ROLES[call["role"]]),
    }


_WRITABLE: Fields = {
    "UserName": str, "Password": str, "RoleId": OneOf(tuple(ROLES)), "Enabled": bool, "PasswordChangeRequired": bool,
}  # fmt: skip

RESOURCES = (
    Resource(
        SERVICE,
        "AccountService.v1_18_1.AccountService",
        _service,
        fields={
            "AccountLockoutThreshold": Range(0, 100),
            "AccountLockoutDuration": Range(0, 86400),
            "AccountLockoutCounterResetAfter": Range(0, 86400),
            "MinPasswordLength": Range(1, 40),
            "MaxPasswordLength": Range(8, 128),
            "LDAP": {"ServiceEnabled": bool},
        },
        patch=_patch_service,
        privilege="ConfigureUsers",
    ),
    collection(
        f"{SERVICE}/Accounts",
        "ManagerAccount",
        "Accounts Collection",
        _members,
        create=_create,
        create_fields=_WRITABLE,
        create_required=("UserName", "Password", "RoleId"),
        privilege="ConfigureUsers",
    ),
    Resource(
        f"{SERVICE}/Accounts/{{account}}",
        "ManagerAccount.v1_14_1.ManagerAccount",
        _account,
        fields={**_WRITABLE, "Locked": bool},
        patch=_patch,
        delete=_delete,
        privilege="ConfigureUsers",
        self_privilege=True,
    ),
    collection(f"{SERVICE}/Roles", "Role", "Roles Collection", _role_members),
    Resource(f"{SERVICE}/Roles/{{role}}", "Role.v1_3_3.Role", _role),
)
