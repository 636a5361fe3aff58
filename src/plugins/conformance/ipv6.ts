/**
 * IPv6 beside IPv4, and alone: addresses, neighbours, names, published ports, what is kept apart, who may say that it is the router.
 *
 * Asked of backends that claim `ipv6` and give noid's own addresses. Every case has a network of its own with both families, unless it
 * says otherwise; IPv4 on it is what the other groups ask.
 */
import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import type { NetworkSpec } from '../contract.ts'
import type { Case } from './case.ts'
import type { Environment } from './environment.ts'
import { patiently } from './patience.ts'
import {
  claims,
  FORGE,
  hashServer,
  hostAddress,
  hostProbe,
  MEBIBYTE,
  needs,
  probe,
  type Station,
  sameHash,
  serve,
  station,
} from './station.ts'

/** How long a lie is given to be believed. */
const BELIEF_MS = 1000
/** A guest's kernel asks for routers again and again, with growing pauses: the client has not waited for it beside IPv4. */
const ROUTER_MS = 60_000

const six = (...wants: Parameters<typeof needs>): Case['skip'] =>
  needs(
    claims('ipv6'),
    (d) => (d.capabilities.addressing === 'noid' ? undefined : 'addresses are not this backend’s'),
    ...wants,
  )

const ping = (s: Station, to: string, ...more: string[]): Promise<string> =>
  s.guest.run('ping', '-6', '-n', '-c', '1', '-w', '20', ...more, to)

const pings = (s: Station, to: string): Promise<boolean> =>
  s.guest.run('ping', '-6', '-n', '-c', '2', '-i', '0.2', '-W', '1', to).then(
    () => true,
    () => false,
  )

interface Address {
  readonly local: string
  readonly scope: string
  readonly dynamic?: boolean
  readonly tentative?: boolean
}

async function addressesOf(s: Station): Promise<Address[]> {
  const [link] = JSON.parse(await s.guest.run('ip', '-j', '-6', 'addr', 'show', 'dev', s.ifname)) as {
    addr_info: Address[]
  }[]
  return link?.addr_info ?? []
}

/** The guest's link-local address, with its link. */
async function linkLocalOf(s: Station): Promise<string> {
  const local = (await addressesOf(s)).find((a) => a.scope === 'link')?.local
  assert.ok(local, 'no link-local address')
  return local
}

/** A router has advertised itself, and the guest's kernel goes by it. */
const routed = (s: Station): Promise<void> =>
  patiently(
    async () =>
      assert.match(
        await s.guest.run('ip', '-6', 'route', 'show', 'default'),
        /via fe80::/,
        'no router advertised itself',
      ),
    ROUTER_MS,
  )

const hex = (address: string): string => {
  const [head, tail] = address.split('::') as [string, string?]
  const groups = [head, tail ?? ''].map((h) => (h === '' ? [] : h.split(':')))
  const all = [...groups[0]!, ...Array<string>(8 - groups[0]!.length - groups[1]!.length).fill('0'), ...groups[1]!]
  return all.map((g) => g.padStart(4, '0')).join('')
}

const arpa = (address: string): string => `${[...hex(address)].reverse().join('.')}.ip6.arpa`

async function pair(e: Environment, n?: NetworkSpec): Promise<[Station, Station, NetworkSpec]> {
  const network = n ?? (await e.dual())
  return [await station(e, network), await station(e, network), network]
}

async function cannotReach(from: Station, to: string, what: string): Promise<void> {
  assert.ok(!(await pings(from, to)), `${what}: ping came through`)
  assert.ok((await probe(from, 'tcp-send', to, '7000', '10')).error, `${what}: TCP came through`)
}

async function exchange([a, b]: readonly [Station, Station, ...unknown[]]): Promise<void> {
  await serve(b, 'tcp-serve', '7000', '::')
  sameHash(await probe(a, 'tcp-send', b.address6, '7000', String(MEBIBYTE)))
  await serve(b, 'udp-echo', '7001', '::')
  assert.equal((await probe(a, 'udp-ask', b.address6, '7001')).echo, 'hello')
}

export const ipv6: readonly Case[] = [
  {
    group: 'ipv6',
    name: 'the address that was asked for, one by SLAAC, the default route, the MTU',
    skip: six(),
    async run(e) {
      const n = await e.dual()
      const s = await station(e, n)
      assert.deepEqual(s.attachment.addresses.length, 2, 'an address of each family')
      assert.equal(`${s.address6}/64`, s.attachment.addresses[1])
      if (s.attachment.configuredBy === 'dhcp') {
        assert.ok(s.ipv6?.lease, 'DHCPv6 gave no address')
        assert.deepEqual(s.ipv6.lease.dns, [n.ipv6?.services], 'the name server of DHCPv6')
      }
      const prefix = (n.ipv6 as NonNullable<NetworkSpec['ipv6']>).subnet.replace('::/64', ':')
      await routed(s)
      const slaac = async () => (await addressesOf(s)).filter((a) => a.dynamic && a.local.startsWith(prefix)).length
      await patiently(async () => assert.equal(await slaac(), 1, 'one address by SLAAC'))
      const mtu = await s.guest.run('cat', `/proc/sys/net/ipv6/conf/${s.ifname}/mtu`)
      assert.equal(Number(mtu), s.attachment.mtu)
    },
  },
  {
    group: 'ipv6',
    name: 'two guests: neighbours, ping at the full MTU, 1 MiB TCP with its hash, UDP',
    skip: six(),
    async run(e) {
      const [a, b] = await pair(e)
      await ping(a, b.address6)
      await ping(a, b.address6, '-M', 'do', '-s', String(a.attachment.mtu - 48))
      await ping(a, `${await linkLocalOf(b)}%${a.ifname}`)
      await exchange([a, b])
    },
  },
  {
    group: 'ipv6',
    name: 'the gateway and the name server answer ping',
    skip: six(),
    async run(e) {
      const n = await e.dual()
      const s = await station(e, n)
      await ping(s, n.ipv6?.gateway as string)
      if (e.descriptor.capabilities.dns) await ping(s, n.ipv6?.services as string)
    },
  },
  {
    group: 'ipv6',
    name: 'out through the gateway: 1 MiB TCP with its hash to an address of the host',
    skip: six(() => (hostAddress('IPv6') === undefined ? 'the host has no IPv6 address but of its links' : undefined)),
    async run(e) {
      const s = await station(e, await e.dual())
      await routed(s)
      const server = await hashServer('::')
      try {
        const { port } = server.address() as { port: number }
        sameHash(await probe(s, 'tcp-send', hostAddress('IPv6') as string, String(port), String(MEBIBYTE)))
      } finally {
        server.close()
      }
    },
  },
  {
    group: 'ipv6',
    name: 'names: AAAA and PTR by both name servers, and no data, not no name, for the other family alone',
    skip: six(claims('dns')),
    async run(e) {
      const [a, b, n] = await pair(e)
      const name = `${b.name}.${n.domain}`
      for (const server of [n.services, n.ipv6?.services as string]) {
        const is = async (name: string, type: string, answers: string[]) =>
          assert.deepEqual(
            await probe(a, 'dns', server, name, type),
            { rcode: 'NOERROR', answers },
            `${type} of ${name}`,
          )
        await is(name, 'AAAA', [b.address6])
        await is(name, 'A', [b.address])
        await is(arpa(b.address6), 'PTR', [name])
        assert.equal((await probe(a, 'dns', server, `nobody.${n.domain}`, 'AAAA')).rcode, 'NXDOMAIN')
      }
      const alone = await e.dual({ ipv4: false })
      const c = await station(e, alone)
      assert.deepEqual(await probe(c, 'dns', alone.ipv6?.services as string, `${c.name}.${n.domain}`, 'A'), {
        rcode: 'NOERROR',
        answers: [],
      })
    },
  },
  {
    group: 'ipv6',
    name: 'an IPv6-only network: addresses, traffic between guests',
    skip: six(),
    async run(e) {
      const [a, b] = await pair(e, await e.dual({ ipv4: false }))
      assert.equal(a.address, '')
      const four = await a.guest.run('ip', '-o', '-4', 'addr', 'show', 'dev', a.ifname)
      assert.equal(four.trim(), '', 'an IPv4 address on a network without IPv4')
      await exchange([a, b])
    },
  },
  {
    group: 'ipv6',
    name: 'a published port on [::], on [::1] and on all addresses of both families',
    skip: six(claims('publish')),
    async run(e) {
      const s = await station(e, await e.dual())
      const ports = e.backend.ports!
      await serve(s, 'tcp-serve', '7000', '::')
      await serve(s, 'udp-echo', '7001', '::')
      const publish = async (hostAddress: string, proto: 'tcp' | 'udp', clients: readonly string[]) => {
        const id = `${s.attachment.id}-${proto}-${hostAddress.replaceAll(/\W/g, '')}`
        const { hostPort } = await ports.publish(
          {
            id,
            attachment: s.attachment.id,
            proto,
            hostAddress,
            hostPort: 0,
            guestAddress: s.address,
            guestAddress6: s.address6,
            guestPort: proto === 'tcp' ? 7000 : 7001,
          },
          e.signal(),
        )
        for (const c of clients)
          if (proto === 'tcp') sameHash(await hostProbe('tcp-send', c, String(hostPort), String(MEBIBYTE)))
          else assert.equal((await hostProbe('udp-ask', c, String(hostPort))).echo, 'hello')
        await ports.unpublish(id, e.signal())
        assert.equal((await hostProbe('tcp-send', clients[0] as string, String(hostPort), '1')).error, 'ECONNREFUSED')
      }
      await publish('::', 'tcp', ['::1'])
      await publish('::1', 'tcp', ['::1'])
      await publish('::1', 'udp', ['::1'])
      await publish('*', 'tcp', ['::1', '127.0.0.1'])
      await publish('*', 'udp', ['127.0.0.1', '::1'])
    },
  },
  {
    group: 'ipv6',
    name: 'guests of two networks do not reach each other',
    skip: six(claims('isolation')),
    async run(e) {
      const [a, b] = [await station(e, await e.dual()), await station(e, await e.dual())]
      await serve(b, 'tcp-serve', '7000', '::')
      await cannotReach(a, b.address6, 'from one network to another')
      await cannotReach(a, `${await linkLocalOf(b)}%${a.ifname}`, 'from one network to another by link-local address')
    },
  },
  {
    group: 'ipv6',
    name: 'guests of an isolated network do not reach each other, by no address, nor the host',
    skip: six(claims('isolation')),
    async run(e) {
      const [a, b] = await pair(e, await e.dual({ isolated: true }))
      await serve(b, 'tcp-serve', '7000', '::')
      await cannotReach(a, b.address6, 'inside an isolated network')
      await cannotReach(a, `${await linkLocalOf(b)}%${a.ifname}`, 'inside an isolated network by link-local address')
      const host = hostAddress('IPv6')
      if (host === undefined) return
      const server = await hashServer('::')
      try {
        const { port } = server.address() as { port: number }
        assert.ok((await probe(a, 'tcp-send', host, String(port), '1')).error, 'an isolated guest reached the host')
      } finally {
        server.close()
      }
    },
  },
  {
    group: 'ipv6',
    name: 'a guest that says it is the router, or its neighbour, is not believed',
    skip: six(claims('isolation')),
    async run(e) {
      const [a, b, n] = await pair(e)
      const gateway = n.ipv6?.gateway as string
      await ping(a, gateway)
      const mac = b.attachment.mac
      const neighbour = async (address: string) =>
        (await a.guest.run('ip', '-6', 'neigh', 'show', address, 'dev', a.ifname)).toLowerCase()
      await b.guest.run(...FORGE, 'advertise', b.ifname, mac, hex('fd66:6f72:6765::'))
      await b.guest.run(...FORGE, 'claim', b.ifname, mac, hex(gateway))
      await sleep(BELIEF_MS)
      const taken = (await addressesOf(a)).filter((x) => x.local.startsWith('fd66:'))
      assert.deepEqual(taken, [], 'an address of a prefix that a guest has advertised')
      const routes = await a.guest.run('ip', '-6', 'route', 'show', 'default')
      assert.ok(!routes.includes(await linkLocalOf(b)), 'a default route to a guest')
      assert.ok(!(await neighbour(gateway)).includes(mac.toLowerCase()), 'the gateway at the MAC of a guest')
      await ping(a, gateway)
    },
  },
]
