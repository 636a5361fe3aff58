/**
 * The data-plane process of one network: `node src/dataplane/main.ts DIR`, started by the userspace backend.
 *
 * It binds DIR/control.sock, gives up every privilege, and serves until it is told to stop or the socket's file is gone. What it
 * has to say goes to stderr, which is a file. There is no event loop: nothing here awaits, and no timer or stream of Node's would ever fire.
 * An exception that nobody caught is logged with its stack and ends the process with 1; it is started again.
 */
import { join } from 'node:path'
import { raiseOpenFiles } from '../sys/privilege.ts'
import { confine } from './confine.ts'
import { Control } from './control.ts'
import { makeArena } from './memory.ts'
import { Plane } from './plane.ts'
import { Reactor } from './reactor.ts'
import { beginAgainIfHeavy } from './warm.ts'

const OPEN_FILES_MAX = 65_536
/** Address space; only what is used becomes memory. */
const ARENA_MIB = 64

const log = (line: string): void => {
  process.stderr.write(`${new Date().toISOString()} ${line}\n`)
}

function main(dir: string): void {
  const reactor = new Reactor(raiseOpenFiles(OPEN_FILES_MAX))
  const control: Control = new Control(join(dir, 'control.sock'), reactor, (request, fds) => plane.handle(request, fds))
  const plane = new Plane({
    reactor,
    arena: makeArena(ARENA_MIB),
    log,
    notify: (event) => control.notify(event),
    wanted: () => control.reachable(),
  })
  for (const what of confine()) log(`could not give up: ${what}`)
  log(`serving ${dir} as process ${process.pid}`)
  plane.run()
  control.close()
  log('stopped')
}

const [dir] = process.argv.slice(2)
if (dir === undefined) {
  process.stderr.write('usage: main.ts DIR\n')
  process.exit(2)
}
beginAgainIfHeavy()
process.title = `noid data plane ${dir}`
try {
  main(dir)
  process.exit(0)
} catch (error) {
  log(error instanceof Error ? (error.stack ?? error.message) : String(error))
  process.exit(1)
}
