#!/bin/sh
# What a DHCP client calls in a guest of the laboratory: udhcpc passes the reason as $1, dhclient as $reason.
case "${1:-$reason}" in
  bound | renew | BOUND | RENEW | REBIND | REBOOT)
    ip addr replace "${ip:-$new_ip_address}/24" dev "$interface"
    ip route replace default via "${router:-$new_routers}" dev "$interface"
    ;;
  preinit | deconfig | PREINIT) ip link set "$interface" up ;;
esac
exit 0
