/**
 * The kernel's own: a bridge, veths, MASQUERADE and DNAT by iptables; nothing of noid. Once with bridge-nf-call-iptables 0 and once with 1, because
 * frames between two ports of a bridge pass iptables only with 1 (docker sets it).
 * With dnsmasq on the bridge's address it is the peer for DNS.
 */

import { GUEST_PORT, HOST, PUBLISHED_PORT } from '../ports.ts'
import { type HostPlace, makeGuest, makeHost, type Stand, type Station, type Subject, versionOf } from '../stand.ts'

const NET = '10.214.16'
const NF = '/proc/sys/net/bridge/bridge-nf-call-iptables'

async function bridge(): Promise<{ host: HostPlace; guests: Station[] }> {
  const host = await makeHost()
  await host.sh(`ip link add br0 type bridge; ip addr add ${NET}.1/24 dev br0; ip link set br0 up`)
  const guests: Station[] = []
  for (const last of [100, 101]) {
    const place = await makeGuest()
    const address = `${NET}.${last}`
    await host.sh(
      `ip link add v${last} type veth peer name eth0 netns ${place.netns.split('/')[2]}
       ip link set v${last} master br0 up`,
    )
    await place.sh(`ip addr add ${address}/24 dev eth0; ip link set eth0 up; ip route add default via ${NET}.1`)
    guests.push({ place, address, ifname: 'eth0' })
  }
  return { host, guests }
}

export const kernel = (nf: 0 | 1): Subject => ({
  name: `kernel-nf${nf}`,
  async open(): Promise<Stand> {
    const version = await versionOf(['iptables', '-V'])
    const { host, guests } = await bridge()
    const to = `${guests[0]?.address}:${GUEST_PORT}`
    await host.sh(
      `iptables -t nat -A POSTROUTING -s ${NET}.0/24 ! -o br0 -j MASQUERADE
       iptables -t nat -A PREROUTING -p tcp -d ${HOST} --dport ${PUBLISHED_PORT} -j DNAT --to-destination ${to}
       iptables -t nat -A OUTPUT -p tcp -d ${HOST} --dport ${PUBLISHED_PORT} -j DNAT --to-destination ${to}
       iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
       iptables -A FORWARD -i br0 -j ACCEPT`,
    )
    const is = await host.sh(`[ ! -e ${NF} ] || echo ${nf} > ${NF}; cat ${NF} 2>/dev/null || echo 0`)
    if (is !== String(nf)) throw new Error(`bridge-nf-call-iptables is ${is} here and cannot be ${nf}`)
    const note = `bridge + iptables, bridge-nf-call-iptables=${nf}`
    const more = { out: true, published: true, dns: undefined, pids: [] }
    return { name: `kernel-nf${nf}`, kind: 'kernel', version, note, host, guests, ...more }
  },
})

export const dnsmasq: Subject = {
  name: 'dnsmasq',
  async open(): Promise<Stand> {
    const version = await versionOf(['dnsmasq', '--version'], /Dnsmasq version \S+/)
    const { host, guests } = await bridge()
    // --no-daemon: stays in the foreground and changes no user, which a user namespace with one user cannot.
    const argv = ['dnsmasq', '--no-daemon', '--conf-file=/dev/null', '--no-resolv', '--no-hosts', '--pid-file']
    const child = await host.start(
      [...argv, `--server=${HOST}`, `--listen-address=${NET}.1`, '--bind-interfaces', '--cache-size=1000'],
      false,
    )
    await new Promise((r) => setTimeout(r, 300))
    if (child.exitCode !== null) throw new Error('dnsmasq does not start')
    return {
      name: 'dnsmasq',
      kind: 'services',
      version,
      note: 'dnsmasq on the address of a kernel bridge',
      host,
      guests,
      out: false,
      published: false,
      dns: `${NET}.1`,
      pids: [child.pid as number],
    }
  },
}
