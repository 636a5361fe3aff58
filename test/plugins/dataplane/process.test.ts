/** A real data plane, and a daemon that lacks something of its own: it is never ended for that. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, afterEach, beforeEach, test } from 'node:test'
import { DataPlaneProcess, type Running } from '../../../src/plugins/dataplane/process.ts'
import { isRunning } from '../../../src/sys/process.ts'
import { missing } from '../needs.ts'
import { ownHost } from '../own-host.ts'

const skip = missing() || ownHost()
const soon = () => AbortSignal.timeout(60_000)
const dir = mkdtempSync(join(tmpdir(), 'nt-process-'))
const run = join(dir, 'run', 'userspace')
const ballast = join(run, 'ballast')
let said: string[] = []
const daemons: DataPlaneProcess[] = []
const daemon = (id: string) => {
  const d = new DataPlaneProcess(join(run, id), id, (_, message) => said.push(message))
  daemons.push(d)
  return d
}
const alive = ({ identity }: Running) => {
  assert.ok(identity)
  return isRunning(identity.pid, identity.startTime)
}

/** The run directory, full but for empty files. */
function fill(): void {
  const fd = openSync(ballast, 'a')
  try {
    for (;;) writeSync(fd, Buffer.alloc(4096))
  } catch (e) {
    assert.equal((e as NodeJS.ErrnoException).code, 'ENOSPC')
  } finally {
    closeSync(fd)
  }
}

beforeEach(() => {
  if (skip) return
  said = []
  mkdirSync(run, { recursive: true })
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=256k', 'full', run])
})
afterEach(async () => {
  if (skip) return
  rmSync(ballast, { force: true })
  for (const d of daemons.splice(0)) await d.end(undefined)
  execFileSync('umount', ['--lazy', run])
})
after(() => rmSync(dir, { recursive: true, force: true }))

/** Started by a daemon that is gone since. */
async function left(id: string): Promise<Running> {
  const first = await daemon(id).ensure(soon())
  first.link.close()
  return first
}

test('adopted in a full run directory, also where its pid was lost', { skip }, async () => {
  const first = await left('a')
  rmSync(join(run, 'a', 'pid'))
  fill()
  const next = daemon('a')
  const found = await next.adopt(soon())
  assert.equal(found?.hello.pid, first.hello.pid)
  assert.ok(alive(first))
  assert.match(said.join(), /could not be written down: ENOSPC/)
  // It is known all the same.
  await next.kill()
  assert.ok(!alive(first))
  found?.link.close()
})

test('a pid that stands there already is not written again', { skip }, async () => {
  const first = await left('b')
  fill()
  const next = daemon('b')
  const found = await next.adopt(soon())
  assert.equal(found?.hello.pid, first.hello.pid)
  assert.deepEqual(said, [])
  assert.equal((JSON.parse(readFileSync(join(run, 'b', 'pid'), 'utf8')) as { pid: number }).pid, first.hello.pid)
  found?.link.close()
})

test('started in a full run directory, it is there and can be ended', { skip }, async () => {
  mkdirSync(join(run, 'c'))
  fill()
  const own = daemon('c')
  const first = await own.ensure(soon())
  assert.match(said.join(), /could not be written down: ENOSPC/)
  first.link.close()
  await own.kill()
  assert.ok(!alive(first))
})

test('a daemon without a descriptor to ask with leaves it alone', { skip }, async () => {
  const first = await left('d')
  const next = daemon('d')
  const taken: number[] = []
  try {
    for (;;) taken.push(openSync('/dev/null', 'r'))
  } catch (e) {
    assert.equal((e as NodeJS.ErrnoException).code, 'EMFILE')
  }
  const asked = next.adopt(soon()).then(
    () => undefined,
    (e: Error) => e,
  )
  for (const fd of taken) closeSync(fd)
  assert.match(String(await asked), /EMFILE/)
  assert.ok(alive(first))
  const found = await next.adopt(soon())
  assert.equal(found?.hello.pid, first.hello.pid)
  found?.link.close()
})
