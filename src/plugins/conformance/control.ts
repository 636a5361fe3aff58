/**
 * The verbs: descriptor, status, create and delete, attach and detach in every order, parallel, restart, gc, abort.
 */
import assert from 'node:assert/strict'
import type { AttachRequest, BackendDescriptor, Nic } from '../contract.ts'
import type { Case } from './case.ts'
import type { Environment } from './environment.ts'

const NAME = /^[a-z][a-z0-9-]{0,31}$/
const KINDS = ['tap', 'netdev', 'tap-device', 'dgram', 'stream', 'vhost-user']

/** Verbs that make devices need what the descriptor says they need. */
export const unprivileged = (d: BackendDescriptor): string | undefined =>
  d.capabilities.privileges.includes('net-admin') && process.getuid?.() !== 0 ? 'this backend needs root' : undefined

const ifnameOf = (nic: Nic): string | undefined => ('ifname' in nic ? nic.ifname : undefined)

/** A promise that must be refused; returns the error. */
async function refused(p: Promise<unknown>, what: string): Promise<Error> {
  try {
    await p
  } catch (error) {
    return error as Error
  }
  throw new Error(`${what} was not refused`)
}

async function attached(
  e: Environment,
): Promise<{ request: AttachRequest; ifname: string | undefined; present: () => Promise<boolean> }> {
  const network = await e.network()
  const guest = await e.guest()
  const request = e.request(network, guest)
  const a = await e.attach(request)
  const ifname = ifnameOf(a.nic)
  return { request, ifname, present: async () => ifname !== undefined && (await guest.hasLink(ifname)) }
}

export const control: readonly Case[] = [
  {
    group: 'descriptor',
    name: 'name, version, summary and capabilities are as the contract says',
    async run({ descriptor: d }) {
      assert.match(d.name, NAME, 'name: lower-case letters, digits and hyphens')
      assert.equal(d.apiVersion, 1)
      assert.ok(d.summary.length > 0 && d.summary.length <= 120, 'summary: one line')
      assert.ok(d.provides.length > 0, 'provides: at least one kind of nic')
      for (const kind of d.provides) assert.ok(KINDS.includes(kind), `provides: ${kind} is not a kind of nic`)
      assert.ok(['noid', 'external'].includes(d.capabilities.addressing), 'capabilities.addressing')
      for (const key of ['publish', 'dns', 'isolation', 'ipv6'] as const)
        assert.equal(typeof d.capabilities[key], 'boolean', `capabilities.${key}`)
    },
  },
  {
    group: 'descriptor',
    name: 'what the capabilities promise is there',
    async run(e) {
      assert.equal(
        e.backend.ports !== undefined,
        e.descriptor.capabilities.publish,
        '`ports` is there when, and only when, `publish` is claimed',
      )
    },
  },
  {
    group: 'descriptor',
    name: 'parseConfig takes nothing at all or says what it needs, and refuses an unknown key by name',
    async run(e) {
      const error = await refused((async () => e.backend.parseConfig({ 'no-such-key': 1 }))(), 'an unknown key')
      assert.match(error.message, /no-such-key/, 'the refusal names the key')
    },
  },
  {
    group: 'status',
    name: 'status answers; every problem has a hint',
    async run(e) {
      const s = await e.backend.status(e.signal())
      assert.equal(typeof s.ok, 'boolean')
      assert.ok(s.ok || s.problems.length > 0, 'not ok, but without a problem')
      for (const p of s.problems) assert.ok(p.hint, `no hint for: ${p.what}`)
    },
  },
  {
    group: 'network',
    name: 'create twice, delete twice, delete the unknown',
    skip: unprivileged,
    async run(e) {
      const n = await e.network()
      await e.backend.createNetwork(n, e.signal())
      await e.removeNetwork(n.id)
      await e.backend.deleteNetwork(n.id, e.signal())
      await e.backend.deleteNetwork('never-made', e.signal())
    },
  },
  {
    group: 'network',
    name: 'a network that was deleted can be made again',
    skip: unprivileged,
    async run(e) {
      const n = await e.network()
      await e.removeNetwork(n.id)
      await e.backend.createNetwork(n, e.signal())
      await e.backend.deleteNetwork(n.id, e.signal())
    },
  },
  {
    group: 'attach',
    name: 'attach, check, detach',
    skip: unprivileged,
    async run(e) {
      const { request, ifname, present } = await attached(e)
      const a = e.stored(request.id)!
      assert.equal(a.id, request.id)
      assert.equal(a.network, request.network)
      assert.equal(a.mac.toLowerCase(), request.mac)
      assert.ok(e.descriptor.provides.includes(a.nic.kind), `${a.nic.kind} is not among what the descriptor provides`)
      assert.ok(request.accepts.includes(a.nic.kind), `${a.nic.kind} is not among what was accepted`)
      assert.ok(a.mtu >= 576 && a.mtu <= 65_535, `an MTU of ${a.mtu}`)
      assert.deepEqual(JSON.parse(JSON.stringify(a)), a, 'an attachment is plain JSON')
      if (e.descriptor.capabilities.addressing === 'noid') assert.deepEqual(a.addresses, request.addresses)
      if (ifname !== undefined) assert.ok(await present(), `${ifname} is not in the guest`)
      await e.backend.check(a, e.signal())
      await e.detach(request.id)
      if (ifname !== undefined) assert.ok(!(await present()), `${ifname} is still in the guest`)
    },
  },
  {
    group: 'attach',
    name: 'attach of the same again gives the same',
    skip: unprivileged,
    async run(e) {
      const { request } = await attached(e)
      const first = e.stored(request.id)
      const again = await e.attach(request)
      assert.deepEqual({ ...again, state: null }, { ...first, state: null })
      await e.backend.check(again, e.signal())
    },
  },
  {
    group: 'attach',
    name: 'attach to an unknown network is refused and makes nothing',
    skip: unprivileged,
    async run(e) {
      const guest = await e.guest()
      await refused(
        e.backend.attach({ ...e.request(await e.spec(), guest), network: 'never-made' }, e.signal()),
        'an unknown network',
      )
    },
  },
  {
    group: 'attach',
    name: 'check notices a device that was removed by hand',
    skip: unprivileged,
    async run(e) {
      const network = await e.network()
      const guest = await e.guest()
      const request = e.request(network, guest)
      const a = await e.attach(request)
      const ifname = ifnameOf(a.nic)
      if (ifname === undefined) return
      await guest.run('ip', 'link', 'delete', ifname)
      await refused(e.backend.check(a, e.signal()), 'an attachment without its device')
      // And the way back is another attach.
      await e.backend.check(await e.attach(request), e.signal())
    },
  },
  {
    group: 'detach',
    name: 'twice, of the unknown, after the device was removed, after the guest is gone',
    skip: unprivileged,
    async run(e) {
      const network = await e.network()
      const guest = await e.guest()
      const request = e.request(network, guest)
      const a = await e.attach(request)
      await e.backend.detach(request.id, a, e.signal())
      await e.backend.detach(request.id, a, e.signal())
      await e.backend.detach(request.id, undefined, e.signal())
      await e.backend.detach('never-attached', undefined, e.signal())
      const again = await e.attach(request)
      const ifname = ifnameOf(again.nic)
      if (ifname !== undefined) await guest.run('ip', 'link', 'delete', ifname)
      await e.detach(request.id)
      const last = await e.attach(request)
      await guest.close()
      await e.backend.detach(request.id, last, e.signal())
      e.forget(request.id)
    },
  },
  {
    group: 'parallel',
    name: '16 attaches at once, and 16 detaches',
    skip: unprivileged,
    async run(e) {
      const network = await e.network()
      const requests: AttachRequest[] = []
      for (let i = 0; i < 16; i++) requests.push(e.request(network, await e.guest()))
      const all = await Promise.all(requests.map((r) => e.attach(r)))
      assert.equal(new Set(all.map((a) => a.id)).size, 16)
      await Promise.all(all.map((a) => e.backend.check(a, e.signal())))
      await Promise.all(requests.map((r) => e.detach(r.id)))
    },
  },
  {
    group: 'restart',
    name: 'after a restart, check passes and detach works with what was stored',
    skip: unprivileged,
    async run(e) {
      const { request, ifname, present } = await attached(e)
      await e.restart()
      await e.attach({ ...request })
      await e.backend.check(e.stored(request.id)!, e.signal())
      await e.restart()
      await e.detach(request.id)
      if (ifname !== undefined) assert.ok(!(await present()), `${ifname} is still in the guest`)
    },
  },
  {
    group: 'gc',
    name: 'removes exactly the strays',
    skip: unprivileged,
    async run(e) {
      const network = await e.network()
      const guests = [await e.guest(), await e.guest(), await e.guest()]
      const requests = guests.map((g) => e.request(network, g))
      for (const r of requests) await e.attach(r)
      const [keep, ...strays] = requests as [AttachRequest, AttachRequest, AttachRequest]
      const report = await e.backend.gc(network.id, [keep.id], e.signal())
      assert.deepEqual([...report.removed].sort(), strays.map((s) => s.id).sort())
      await e.backend.check(e.stored(keep.id)!, e.signal())
      for (const [k, stray] of strays.entries()) {
        const ifname = ifnameOf(e.stored(stray.id)!.nic)
        if (ifname !== undefined) assert.ok(!(await guests[k + 1]!.hasLink(ifname)), 'a stray is still there')
        e.forget(stray.id)
      }
      assert.deepEqual((await e.backend.gc(network.id, [keep.id], e.signal())).removed, [])
    },
  },
  {
    group: 'abort',
    name: 'an attach that is aborted leaves nothing, wherever it was',
    skip: unprivileged,
    async run(e) {
      const network = await e.network()
      for (const after of [0, 1, 5, 20, 60]) {
        const guest = await e.guest()
        const request = e.request(network, guest)
        const controller = new AbortController()
        const timer = setTimeout(() => controller.abort(new Error('aborted by the kit')), after)
        if (after === 0) controller.abort(new Error('aborted by the kit'))
        try {
          const a = await e.backend.attach(request, controller.signal)
          // It was quicker: then it is whole.
          await e.backend.check(a, e.signal())
          await e.backend.detach(request.id, a, e.signal())
        } catch {
          assert.ok(controller.signal.aborted, 'it failed though nobody aborted it')
        }
        clearTimeout(timer)
        const links = (JSON.parse(await guest.run('ip', '-j', 'link', 'show')) as { ifname: string }[]).map(
          (l) => l.ifname,
        )
        assert.deepEqual(links, ['lo'], `aborted after ${after} ms, it left a device in the guest`)
        assert.deepEqual(
          (await e.backend.gc(network.id, [], e.signal())).removed,
          [],
          `aborted after ${after} ms, it left an attachment`,
        )
      }
    },
  },
]
