/**
 * Through the nic: what a guest can do once it is attached, and what it cannot.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import type { Case } from './case.ts'
import {
  claims,
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

async function cannotReach(from: Station, to: Station, what: string): Promise<void> {
  const reached = await from.guest.run('ping', '-n', '-c', '2', '-i', '0.2', '-W', '1', to.address).then(
    () => true,
    () => false,
  )
  assert.ok(!reached, `${what}: ping came through`)
  const tcp = await probe(from, 'tcp-send', to.address, '7000', '10')
  assert.ok(tcp.error, `${what}: TCP came through`)
}

export const traffic: readonly Case[] = [
  {
    group: 'traffic',
    name: 'DHCP gives the address that was asked for, the router, the name server and the MTU',
    skip: needs((d) => (d.capabilities.addressing === 'noid' ? undefined : 'addresses are not this backend’s')),
    async run(e) {
      const n = await e.network()
      const s = await station(e, n)
      assert.equal(`${s.address}/24`, s.attachment.addresses[0])
      const routes = await s.guest.run('ip', 'route', 'show', 'default')
      assert.match(routes, new RegExp(`via ${n.gateway.replaceAll('.', '\\.')}`))
      const link = JSON.parse(await s.guest.run('ip', '-j', 'link', 'show', s.ifname)) as {
        mtu: number
        address: string
      }[]
      assert.equal(link[0]?.mtu, s.attachment.mtu)
      assert.equal(link[0]?.address, s.attachment.mac.toLowerCase())
    },
  },
  {
    group: 'traffic',
    name: 'two guests: ARP, ping at the full MTU, 1 MiB TCP with its hash, UDP',
    skip: needs(),
    async run(e) {
      const n = await e.network()
      const [a, b] = [await station(e, n), await station(e, n)]
      await a.guest.run('ping', '-n', '-c', '1', '-w', '20', b.address)
      const size = String(a.attachment.mtu - 28)
      await a.guest.run('ping', '-n', '-c', '1', '-w', '20', '-M', 'do', '-s', size, b.address)
      await serve(b, 'tcp-serve', '7000')
      sameHash(await probe(a, 'tcp-send', b.address, '7000', String(MEBIBYTE)))
      await serve(b, 'udp-echo', '7001')
      assert.deepEqual(await probe(a, 'udp-ask', b.address, '7001'), { echo: 'hello', from: a.address })
    },
  },
  {
    group: 'traffic',
    name: 'the gateway answers ping',
    skip: needs((d) => (d.capabilities.addressing === 'noid' ? undefined : 'the gateway is not this backend’s')),
    async run(e) {
      const n = await e.network()
      const s = await station(e, n)
      await s.guest.run('ping', '-n', '-c', '1', '-w', '20', n.gateway)
    },
  },
  {
    group: 'traffic',
    name: 'out through the gateway: 1 MiB TCP with its hash to an address of the host',
    skip: needs(
      (d) => (d.capabilities.addressing === 'noid' ? undefined : 'the gateway is not this backend’s'),
      () => (hostAddress() === undefined ? 'the host has no address but loopback' : undefined),
    ),
    async run(e) {
      const n = await e.network()
      const s = await station(e, n)
      const server = await hashServer('0.0.0.0')
      try {
        const { port } = server.address() as { port: number }
        sameHash(await probe(s, 'tcp-send', hostAddress() as string, String(port), String(MEBIBYTE)))
      } finally {
        server.close()
      }
    },
  },
  {
    group: 'traffic',
    name: 'names: the guest’s own, its neighbour’s, and none for who does not exist',
    skip: needs(claims('dns')),
    async run(e) {
      const n = await e.network()
      const [a, b] = [await station(e, n), await station(e, n)]
      const server = a.attachment.dns?.servers[0] ?? n.services
      assert.deepEqual(await probe(a, 'dns', server, `${b.name}.${n.domain}`, 'A'), {
        rcode: 'NOERROR',
        answers: [b.address],
      })
      assert.deepEqual(await probe(a, 'dns', server, `${a.name}.${n.domain}`, 'A'), {
        rcode: 'NOERROR',
        answers: [a.address],
      })
      assert.deepEqual(await probe(a, 'dns', server, `${b.name}.${n.domain}`, 'AAAA'), {
        rcode: 'NOERROR',
        answers: [],
      })
      const nobody = await probe(a, 'dns', server, `nobody.${n.domain}`, 'A')
      assert.equal(nobody.rcode, 'NXDOMAIN')
    },
  },
  {
    group: 'publish',
    name: 'TCP and UDP from the host, host port 0, removed again, twice',
    skip: needs(claims('publish')),
    async run(e) {
      const n = await e.network()
      const s = await station(e, n)
      const ports = e.backend.ports!
      const base = { attachment: s.attachment.id, hostAddress: '127.0.0.1', hostPort: 0, guestAddress: s.address }
      await serve(s, 'tcp-serve', '7000')
      const tcp = await ports.publish({ ...base, id: `${n.id}-t`, proto: 'tcp', guestPort: 7000 }, e.signal())
      assert.ok(tcp.hostPort > 0, 'host port 0 names the port that was picked')
      sameHash(await hostProbe('tcp-send', '127.0.0.1', String(tcp.hostPort), String(MEBIBYTE)))
      await serve(s, 'udp-echo', '7001')
      const udp = await ports.publish({ ...base, id: `${n.id}-u`, proto: 'udp', guestPort: 7001 }, e.signal())
      assert.equal((await hostProbe('udp-ask', '127.0.0.1', String(udp.hostPort))).echo, 'hello')
      for (const id of [`${n.id}-t`, `${n.id}-u`, `${n.id}-t`, 'never-published']) await ports.unpublish(id, e.signal())
      assert.equal((await hostProbe('tcp-send', '127.0.0.1', String(tcp.hostPort), '1')).error, 'ECONNREFUSED')
    },
  },
  {
    group: 'publish',
    name: 'a busy port is refused by name and changes nothing',
    skip: needs(claims('publish')),
    async run(e) {
      const n = await e.network()
      const s = await station(e, n)
      const { createServer } = await import('node:net')
      const server = createServer()
      await once(server.listen(0, '127.0.0.1'), 'listening')
      try {
        const { port } = server.address() as { port: number }
        const spec = {
          id: `${n.id}-busy`,
          attachment: s.attachment.id,
          proto: 'tcp' as const,
          hostAddress: '127.0.0.1',
          hostPort: port,
          guestAddress: s.address,
          guestPort: 7000,
        }
        await assert.rejects(e.backend.ports!.publish(spec, e.signal()), (error: Error & { code?: string }) => {
          assert.equal(error.code, 'PORT_BUSY')
          assert.match(error.message, new RegExp(String(port)))
          return true
        })
      } finally {
        server.close()
      }
    },
  },
  {
    group: 'isolation',
    name: 'guests of two networks do not reach each other',
    skip: needs(claims('isolation')),
    async run(e) {
      const [a, b] = [await station(e, await e.network()), await station(e, await e.network())]
      await serve(b, 'tcp-serve', '7000')
      await cannotReach(a, b, 'from one network to another')
    },
  },
  {
    group: 'isolation',
    name: 'guests of an isolated network do not reach each other, nor the host',
    skip: needs(claims('isolation')),
    async run(e) {
      const n = await e.network({ isolated: true })
      const [a, b] = [await station(e, n), await station(e, n)]
      await serve(b, 'tcp-serve', '7000')
      await cannotReach(a, b, 'inside an isolated network')
      const host = hostAddress()
      if (host === undefined) return
      const { createServer } = await import('node:net')
      const server = createServer((c) => c.end('{}'))
      await once(server.listen(0, '0.0.0.0'), 'listening')
      try {
        const r = await probe(a, 'tcp-send', host, String((server.address() as { port: number }).port), '1')
        assert.ok(r.error, 'an isolated guest reached the host')
      } finally {
        server.close()
      }
    },
  },
]
