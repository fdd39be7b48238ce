"""One Redfish call, for tests to run inside a namespace: ADDRESS USER:PASSWORD METHOD PATH JSON → the answer as JSON.

The certificate that the BMC shows first is the one that the second connection trusts: what a lab test needs, no more.
"""

import base64
import http.client
import json
import ssl
import sys


def main(address: str, secret: str, method: str, path: str, body: str) -> None:
    context = ssl.create_default_context(cadata=ssl.get_server_certificate((address, 443), timeout=10))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the leaf, whoever signed it
    context.check_hostname = False  # a factory certificate names the serial number, not the address
    connection = http.client.HTTPSConnection(address, context=context, timeout=60)
    headers = {
        "Authorization": "Basic " + base64.b64encode(secret.encode()).decode(),
        "Content-Type": "application/json",
    }
    if method == "PATCH":
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        answer.read()
        headers["If-Match"] = answer.headers["ETag"]
    connection.request(method, path, body=None if body == "null" else body, headers=headers)
    answer = connection.getresponse()
    text = answer.read()
    if answer.status >= 300:
        sys.exit(f"{answer.status} {text.decode(errors='replace')}")
    sys.stdout.write(json.dumps(json.loads(text or b"null")))


if __name__ == "__main__":
    main(*sys.argv[1:])
