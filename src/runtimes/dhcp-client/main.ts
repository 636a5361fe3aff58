/**
 * One run of the DHCP client: get or prolong a lease on a device of this network namespace, configure the device, print
 * one ClientAnswer as JSON, end. argv[2] is a ClientRequest.
 *
 * One thread, blocking in poll(2); ends by itself within the request's budget.
 */
import { decode, encode } from '#dhcp-packet'
import { buildFrame, parseFrame } from './frame.ts'
import type { ClientAnswer, ClientRequest, Lease } from './lease.ts'
import { Link } from './link.ts'
import { type ClientOptions, DhcpClient, type Outgoing } from './machine.ts'

const BROADCAST_MAC = 'ff:ff:ff:ff:ff:ff'

function main(r: ClientRequest): Lease {
  const link = new Link(r.ifname)
  if (link.mac !== r.mac.toLowerCase()) throw new Error(`${r.ifname} has the MAC address ${link.mac}, not ${r.mac}`)
  try {
    const lease = exchange(link, r)
    // After a renewal the device still has the old lease; a device that was made again has nothing.
    link.configure(lease, r.mode === 'renew' ? r.lease : undefined, r.mtu)
    return lease
  } finally {
    link.close()
  }
}

function exchange(link: Link, r: ClientRequest): Lease {
  const end = performance.now() + r.budgetMs
  const begin = beginning(r, Date.now())
  const o: ClientOptions = { mac: r.mac, hostname: r.hostname, lease: r.lease, begin, random: Math.random }
  const client = new DhcpClient(o, performance.now())
  for (;;) {
    const now = performance.now()
    if (now >= end) throw new Error(`no DHCP server answered on ${r.ifname} within ${Math.round(r.budgetMs / 1000)} s`)
    const out = client.due(now)
    if (out !== undefined) link.send(frameOf(out, r.mac))
    const frame = link.receive(Math.min(client.deadline, end) - performance.now())
    const datagram = frame === undefined ? undefined : parseFrame(frame)
    if (datagram === undefined) continue
    try {
      client.receive(decode(datagram.payload), datagram.sourceMac, performance.now(), Date.now())
    } catch {
      // Not a DHCP message: somebody else's.
    }
    if (client.lease !== undefined) return client.lease
  }
}

/** Where RFC 2131's figure 5 is entered. */
function beginning(r: ClientRequest, wall: number): ClientOptions['begin'] {
  const l = r.lease
  if (l === undefined || (l.leaseMs !== null && wall >= l.boundAt + l.leaseMs)) return 'init'
  if (r.mode === 'acquire') return 'reboot'
  return wall >= l.boundAt + l.t2Ms ? 'rebind' : 'renew'
}

function frameOf(out: Outgoing, mac: string): Buffer {
  const payload = encode(out.packet)
  return out.to === 'broadcast'
    ? buildFrame(
        { sourceMac: mac, targetMac: BROADCAST_MAC, source: out.packet.ciaddr ?? '0.0.0.0', target: '255.255.255.255' },
        payload,
      )
    : buildFrame({ sourceMac: mac, targetMac: out.to.mac, source: out.to.from, target: out.to.address }, payload)
}

let answer: ClientAnswer
try {
  answer = { ok: true, lease: main(JSON.parse(process.argv[2] as string) as ClientRequest) }
} catch (e) {
  answer = { ok: false, why: (e as Error).message }
}
process.stdout.write(JSON.stringify(answer))
