"""Which version answers: arms, policies, allocations, and what they are learnt from."""
