"""What a router is: rules, sites, hooks on routers, recording."""
