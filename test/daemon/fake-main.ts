/**
 * The daemon with the fakes, as a process: NOID_HOME, CRASH_AT=POINT to be killed (-9) at a checkpoint, BACKOFF for other pauses, GONE=BACKEND for
 * one that is not there, FAILS=BACKEND for one that cannot be loaded.
 */
import { join } from 'node:path'
import { type Prefix6, parsePrefix6 } from '../../src/daemon/addressing6.ts'
import { startDaemon } from '../../src/daemon/daemon.ts'
import { fileLog } from '../../src/daemon/log.ts'
import type { Backoff } from '../../src/daemon/restarts.ts'
import { ownPaths } from '../../src/paths.ts'
import { fakeBackend, fakeRuntime, World } from './fakes.ts'

const paths = ownPaths()
const world = new World(join(process.env.NOID_HOME as string, 'world'))
const plain = fakeBackend(world, 'userspace')
const bare = fakeBackend(world, 'bare', { publish: false, isolation: false })
const dual = fakeBackend(world, 'dual', { ipv6: true })
const backends = [plain, bare, dual]
  .filter((d) => d.name !== process.env.GONE)
  .map((d) => (d.name === process.env.FAILS ? { ...d, load: () => Promise.reject(new Error('it is torn')) } : d))
const daemon = await startDaemon({
  paths,
  sources: [
    { from: 'noid', backends: async () => backends },
    { from: 'broken', backends: () => Promise.reject(new Error('it throws')) },
  ],
  runtimes: [fakeRuntime(world)],
  log: fileLog(paths.daemonLog, true),
  version: '0.0.0-test',
  privileged: false,
  hostRoutes6: () =>
    process.env.NO_IPV6
      ? undefined
      : process.env.VPN6
        ? [{ subnet: parsePrefix6('fd00::/8') as Prefix6, by: 'the host route fd00::/8 (wg0)' }]
        : [],
  hostRoutes: () => [],
  ...(process.env.BACKOFF === undefined ? {} : { backoff: JSON.parse(process.env.BACKOFF) as Backoff }),
  checkpoint: (point) => {
    if (point === process.env.CRASH_AT) process.kill(process.pid, 'SIGKILL')
  },
})
if (daemon === undefined) process.exit(3)
process.on('SIGTERM', () => void daemon.stop())
await daemon.ended
process.exit(0)
