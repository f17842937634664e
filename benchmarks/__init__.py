"""Measurements that docs/ quotes; product code never imports them."""
