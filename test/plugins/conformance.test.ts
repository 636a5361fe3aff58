// The kit must pass a backend that keeps the contract and fail one that breaks it, group by group.
// The example backend is the honest one: nothing but `ip`, so it is no judge in its own cause.
import assert from 'node:assert/strict'
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { test } from 'node:test'
import { create } from '../../examples/noid-backend-ptp/src/backend.ts'
import { descriptor as ptp } from '../../examples/noid-backend-ptp/src/descriptor.ts'
import { Guest } from '../../src/plugins/conformance/guest.ts'
import { cases, conformance, type Group, runCase } from '../../src/plugins/conformance/index.ts'
import { FORGE } from '../../src/plugins/conformance/station.ts'
import type { BackendContext, BackendDescriptor, NetworkBackend } from '../../src/plugins/contract.ts'
import { eventually } from '../eventually.ts'
import { missing } from './needs.ts'
import { ownHost } from './own-host.ts'

const skip = missing() || ownHost()

if (skip === false) conformance(test as never, ptp)
else test('the example backend passes the kit', { skip }, () => {})

/** The honest backend with some verbs replaced. */
function broken(
  change: (honest: NetworkBackend, ctx: BackendContext) => Partial<NetworkBackend>,
  d: Partial<BackendDescriptor> = {},
): BackendDescriptor {
  return {
    ...ptp,
    ...d,
    load: async () => (ctx) => {
      const honest = create(ctx)
      const changed = change(honest, ctx) as Record<string, unknown>
      return new Proxy(honest, {
        get: (target, key) => {
          if (key in changed) return changed[key as string]
          const v = Reflect.get(target, key) as unknown
          return typeof v === 'function' ? v.bind(target) : v
        },
      })
    },
  }
}

/** How each breach looks, and the group that must notice. */
const breaches: readonly [Group, string, BackendDescriptor][] = [
  ['descriptor', 'a name with capitals', { ...ptp, name: 'Ptp' }],
  ['descriptor', 'publish claimed, nothing there', { ...ptp, capabilities: { ...ptp.capabilities, publish: true } }],
  ['descriptor', 'settings swallowed', broken(() => ({ parseConfig: () => ({}) }))],
  [
    'status',
    'a problem without a hint',
    broken(() => ({ status: async () => ({ ok: false, problems: [{ what: 'no' }] }) })),
  ],
  [
    'network',
    'delete of the unknown throws',
    broken((honest) => {
      const known = new Set<string>()
      return {
        createNetwork: async (n, s) => {
          known.add(n.id)
          await honest.createNetwork(n, s)
        },
        deleteNetwork: async (id, s) => {
          if (!known.delete(id)) throw new Error(`no network ${id}`)
          await honest.deleteNetwork(id, s)
        },
      }
    }),
  ],
  ['attach', 'check passes whatever happened', broken(() => ({ check: async () => {} }))],
  [
    'attach',
    'another MAC than asked for',
    broken((honest) => ({ attach: async (r, s) => ({ ...(await honest.attach(r, s)), mac: '02:00:00:00:00:01' }) })),
  ],
  [
    'detach',
    'the second detach throws',
    broken((honest) => {
      const gone = new Set<string>()
      return {
        detach: async (id, last, s) => {
          if (gone.has(id)) throw new Error(`${id} is not attached`)
          gone.add(id)
          await honest.detach(id, last, s)
        },
      }
    }),
  ],
  [
    'parallel',
    'one attach at a time, others refused',
    broken((honest) => {
      let busy = false
      return {
        attach: async (r, s) => {
          if (busy) throw new Error('busy')
          busy = true
          try {
            return await honest.attach(r, s)
          } finally {
            busy = false
          }
        },
      }
    }),
  ],
  [
    'restart',
    'detach only of what this process attached',
    broken((honest) => {
      const mine = new Set<string>()
      return {
        attach: async (r, s) => honest.attach(r, s),
        check: async (a, s) => {
          mine.add(a.id)
          await honest.check(a, s)
        },
        detach: async (id, last, s) => {
          if (mine.has(id)) await honest.detach(id, last, s)
        },
      }
    }),
  ],
  ['gc', 'removes everything', broken((honest) => ({ gc: async (n, _valid, s) => honest.gc(n, [], s) }))],
  ['gc', 'removes nothing', broken(() => ({ gc: async () => ({ removed: [] }) }))],
  [
    'abort',
    'an aborted attach leaves its device',
    broken((honest) => ({
      attach: async (r, s) => {
        const a = await honest.attach(r, AbortSignal.timeout(10_000))
        s.throwIfAborted()
        return a
      },
    })),
  ],
  [
    'traffic',
    'a device that is down',
    broken((honest) => ({
      attach: async (r, s) => {
        const a = await honest.attach(r, s)
        execFileSync('nsenter', [`--net=${r.netns}`, 'ip', 'link', 'set', 'eth0', 'down'])
        return a
      },
    })),
  ],
  [
    'publish',
    'a port that leads nowhere, and a busy one taken',
    broken(() => ({ ports: { publish: async () => ({ hostPort: 1 }), unpublish: async () => {} } }), {
      capabilities: { ...ptp.capabilities, publish: true },
    }),
  ],
  // Routed by the host and nothing in between: what the honest one rightly does not claim.
  ['isolation', 'claimed, and not kept', { ...ptp, capabilities: { ...ptp.capabilities, isolation: true } }],
  ['ipv6', 'claimed, and IPv4 alone there', { ...ptp, capabilities: { ...ptp.capabilities, ipv6: true } }],
]

for (const [group, what, d] of breaches)
  test(`the kit notices (${group}): ${what}`, { skip, timeout: 300_000 }, async () => {
    const noticed: string[] = []
    for (const c of cases) {
      if (c.group !== group || c.skip?.(d, {}) !== undefined) continue
      await runCase(c, d).catch((e: Error) => noticed.push(`${c.name}: ${e.message}`))
    }
    assert.ok(noticed.length > 0, 'no case of the group failed')
  })

test('something left on the host is noticed, whatever the case', { skip }, async () => {
  const name = `ntk${process.pid % 10_000}`
  const d = broken((honest) => ({
    deleteNetwork: async (id, s) => {
      await honest.deleteNetwork(id, s)
      spawnSync('ip', ['link', 'add', name, 'type', 'veth', 'peer', 'name', `${name}p`])
    },
  }))
  try {
    const c = cases.find((x) => x.group === 'network')!
    await assert.rejects(runCase(c, d), new RegExp(`left behind: .*${name}`))
  } finally {
    spawnSync('ip', ['link', 'delete', name])
  }
})

test('a process that outlives its network is noticed', { skip, timeout: 60_000 }, async () => {
  const started: number[] = []
  const d = broken((honest, ctx) => ({
    createNetwork: async (n, s) => {
      const child = spawn('sh', ['-c', `: ${ctx.runDir}; sleep 60; :`], { detached: true, stdio: 'ignore' })
      started.push(child.pid as number)
      await honest.createNetwork(n, s)
    },
  }))
  try {
    await assert.rejects(runCase(cases.find((x) => x.group === 'network')!, d), /processes left behind/)
  } finally {
    for (const pid of started) process.kill(-pid, 'SIGKILL')
  }
})

test('the lies of the kit are believed where nothing is between two guests', { skip, timeout: 300_000 }, async () => {
  const mac = '02:6b:00:00:00:66'
  await using stack = new AsyncDisposableStack()
  const [honest, liar] = [await Guest.open(), await Guest.open()]
  stack.defer(() => honest.close())
  stack.defer(() => liar.close())
  const pid = (g: Guest): string => g.netns.split('/')[2] as string
  execFileSync('ip', [
    'link',
    'add',
    'ntl0',
    'netns',
    pid(honest),
    'type',
    'veth',
    'peer',
    'name',
    'ntl1',
    'netns',
    pid(liar),
  ])
  await liar.run('ip', 'link', 'set', 'ntl1', 'address', mac, 'up')
  await honest.run('ip', 'link', 'set', 'ntl0', 'up')
  await honest.run(
    'ip',
    '-6',
    'neigh',
    'replace',
    'fd66::1',
    'lladdr',
    '02:00:00:00:00:01',
    'nud',
    'stale',
    'dev',
    'ntl0',
  )
  const seen = (what: RegExp, ...argv: string[]): Promise<boolean> =>
    eventually(`ip ${argv.join(' ')}: ${what}`, async () => what.test(await honest.run('ip', '-6', ...argv)))
  // Not before the link is usable: what a kernel without a link-local address hears, it forgets.
  await seen(/fe80\S+ scope link(?! tentative)/, 'addr', 'show', 'dev', 'ntl0')
  await liar.run(...FORGE, 'advertise', 'ntl1', mac, 'fd666f72676500000000000000000000')
  await seen(/inet6 fd66:6f72:6765:0:/, 'addr', 'show', 'dev', 'ntl0')
  await seen(/via fe80::6b:ff:fe00:66/, 'route', 'show', 'default')
  await liar.run(...FORGE, 'claim', 'ntl1', mac, 'fd660000000000000000000000000001')
  await seen(/fd66::1 .*lladdr 02:6b:00:00:00:66/, 'neigh', 'show', 'dev', 'ntl0')
})
