"""Vault, operator keys and PKI, Secure Boot keys, TPM attestation."""
