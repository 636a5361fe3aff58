/** The daemon with its real parts, as a process: NOID_HOME, and CRASH_AT=POINT to be killed (-9) at a checkpoint. */
import { startDaemon } from '../../src/daemon/daemon.ts'
import { fileLog } from '../../src/daemon/log.ts'
import { ownPaths } from '../../src/paths.ts'
import { backendSources } from '../../src/plugins/sources.ts'
import { runtimes } from '../../src/runtimes/index.ts'

const paths = ownPaths()
const daemon = await startDaemon({
  paths,
  sources: await backendSources({}),
  runtimes,
  log: fileLog(paths.daemonLog, true),
  version: '0.0.0-test',
  privileged: true,
  checkpoint: (point) => {
    if (point === process.env.CRASH_AT) process.kill(process.pid, 'SIGKILL')
  },
})
if (daemon === undefined) process.exit(3)
process.on('SIGTERM', () => void daemon.stop())
await daemon.ended
process.exit(0)
