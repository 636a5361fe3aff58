/** A checkout that is deleted while its daemon runs: the next command, from another one, replaces the daemon, and the VMs go on. */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { cpSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { promisify } from 'node:util'
import { repository } from './lab.ts'

const run = promisify(execFile)
let home: string
let copy: string

before(() => {
  home = mkdtempSync(join(tmpdir(), 'noid-home-'))
  copy = mkdtempSync(join(tmpdir(), 'noid-copy-'))
  for (const part of ['bin', 'src', 'packages', 'package.json', 'tsconfig.json'])
    cpSync(join(repository, part), join(copy, part), { recursive: true })
  symlinkSync(join(repository, 'node_modules'), join(copy, 'node_modules'))
})
after(async () => {
  await noid(repository, 'destroy', '--all').catch(() => {})
  await noid(repository, 'daemon', 'stop').catch(() => {})
  for (const dir of [home, copy]) rmSync(dir, { recursive: true, force: true })
})

async function noid(from: string, ...args: string[]): Promise<string> {
  const env = { ...process.env, NOID_HOME: home, NODE_TEST_CONTEXT: undefined, NODE_OPTIONS: undefined }
  const { stdout } = await run(process.execPath, [join(from, 'bin/noid.mjs'), ...args], {
    env,
    cwd: home,
    timeout: 120_000,
  })
  return stdout.trim()
}
async function daemon(from: string): Promise<number> {
  const { version } = JSON.parse(await noid(from, 'daemon', 'status', '--json')) as { version: { pid: number } }
  return version.pid
}

test('its daemon gives way to one that can start something', async () => {
  await noid(copy, 'create', 'before')
  const pid = await daemon(copy)
  assert.equal(await daemon(repository), pid, 'one whose files are there is nobody’s to replace')
  rmSync(copy, { recursive: true })
  assert.equal(await noid(repository, 'exec', 'before', '--', 'echo', 'still here'), 'still here')
  assert.notEqual(await daemon(repository), pid)
  await noid(repository, 'create', 'after')
  assert.equal(await noid(repository, 'exec', 'after', '--', 'echo', 'new'), 'new')
})
