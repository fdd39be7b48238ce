"""The Redfish service of a lab machine: a made-up vendor's BMC, written against `freehold_lab.hardware.Hardware`.

Every resource is a row of data (`core.Resource`): a path pattern, a builder of its representation, the properties that
PATCH accepts, the actions it offers. `service` joins the rows of all modules to one tree and does what DSP0266 asks of
every request: authentication, privileges, ETags, error bodies. Run one by hand with `python -m freehold_lab.bmc`.
"""
