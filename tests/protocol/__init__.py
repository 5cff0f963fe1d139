"""The wire contract, rule by rule, against a real gateway."""
