"""Remote attestation of a TPM 2.0 server: what was quoted, whose TPM it was, what booted, and whether policy allows it.

Nothing in this package does I/O but `ek.load_roots` and `ek.RootsDirectory`; clocks are arguments. The order of work:

    challenge = session.new_challenge(ek_public, ak_public, now=now)     # to the agent
    evidence = session.verify_response(challenge, response, ...)          # or an AttestationError
    verdict = appraise.appraise(evidence, policy, now)                    # never raises; untrusted unless proven

`predict` computes what policy expects from an image and the enrolled keys.
"""
