"""Campaigns: many seeded cases of hostile input, of which a few run with the other tests."""
