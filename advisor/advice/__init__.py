"""Situation -> Advice -> Plan. Pure: no clock, network, environment or printing."""
