"""The landlord's door: Redfish client, BMC take-over, posture, vendor quirks as data."""
