"""What the evidence claims: arms, which are lists of settings, the claims that compare them, and the sweep's grid."""
