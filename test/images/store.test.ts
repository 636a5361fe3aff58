/** The image store's own names: none that a person may choose for an image is one of them. */
import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { Images } from '../../src/images/index.ts'
import { type Blob, type BlobKind, ImageStore } from '../../src/images/store.ts'
import { writeState } from '../../src/state-file.ts'
import { kernelElf } from './shared.ts'

const top = mkdtempSync(join(tmpdir(), 'noid-image-store-'))
after(() => rmSync(top, { recursive: true, force: true }))

function kernel(): string {
  const file = join(top, 'kernel')
  writeFileSync(file, kernelElf())
  return file
}

/** A store that has what all images boot with, as a build leaves it. */
async function withBase(dir: string): Promise<void> {
  const store = new ImageStore(dir)
  const file = (kind: BlobKind, text: string): { path: string; kind: BlobKind } => {
    const path = join(dir, text)
    writeFileSync(path, text)
    return { path, kind }
  }
  mkdirSync(dir)
  const files = [file('vmlinux', 'a kernel'), file('cpio', 'programs'), file('cpio', 'modules')]
  await store.commit(files, ([kernel, runtime, modules]: readonly Blob[]) => {
    const names = { kernel, runtime, modules, kernelVersion: '1', kernelDeb: 'k.deb', packages: [], inputs: '' }
    writeState(join(dir, 'base.json'), { schema: 1, ...names })
    return undefined
  })
}

for (const name of ['store', 'base', 'daemon', 'image-store'])
  test(`an image may be called "${name}"`, { timeout: 60_000 }, async () => {
    const dir = join(top, name)
    await withBase(dir)
    const images = new Images(dir, () => {})
    assert.equal((await images.import({ name, kernel: kernel() })).name, name)
    await images.remove(name)
    assert.equal(new ImageStore(dir).manifest(name), undefined)
  })

test('what all images boot with is built while an image called "base" waits for it', { timeout: 60_000 }, async () => {
  const store = new ImageStore(join(top, 'waiting'))
  const never = (): void => assert.fail('it waits for itself')
  const both = await store.building('image-base', undefined, never, (one) =>
    store.building('base', undefined, never, async (other) => [one, other]),
  )
  assert.notEqual(both[0], both[1])
})
